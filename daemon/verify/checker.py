"""Table against index: one pass over the rows, one over the documents, and a second look at what differs."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from daemon.core.change import Row
from daemon.core.document import Document, DocumentBuilder
from daemon.core.vectors import decode
from daemon.embedding.batches import EmbeddingBatches
from daemon.errors import RejectRow, StopPipeline
from daemon.index.layout import document_id, document_key
from daemon.mirror import TableRows
from daemon.patience import Patience
from daemon.source.postgres import PostgresReader, TableSchema
from daemon.verify.differences import Difference, Report
from daemon.verify.stored import StoredChunk, StoredDocument, StoredDocuments

ROWS_PER_CHUNK = 500
COSINE_MIN = 0.999
"""Between a stored vector and its text's embedding now; FLOAT16, BFLOAT16 and another batch stay above it."""
LOOK_PAUSE_S = 0.2
LOOKS = 4
"""A difference is told when so many looks in a row found the same of a document that was not written meanwhile."""
LOOKS_MAX = 25
"""After so many it is told even where the document goes on being written."""

OnProgress = Callable[[str, int, int | None], None]
"""(step, done, total): `rows`, `documents`, `index`, `again`."""


@dataclass(frozen=True)
class Subject:
    """One pipeline, with all that is needed to look at it.

    Attributes:
        chunk: cuts a text into what is embedded.
        embedding: gives FLOAT32; None: vectors are not recomputed.
        vector_type: number format of the index's vectors.
    """

    pipeline: str
    reader: PostgresReader
    table: TableSchema
    rows: TableRows
    builder: DocumentBuilder
    chunk: Callable[[str], Sequence[str]]
    stored: StoredDocuments
    embedding: EmbeddingBatches | None
    patience: Patience
    vector_type: str
    dimension: int


@dataclass(frozen=True, slots=True)
class _Look:
    """`version` of the stored document: while it changes, the document is being written."""

    differences: frozenset[Difference]
    version: str


class Checker:
    """Checks one pipeline. Holds the ids of the table, and nothing else that grows with it."""

    def __init__(self, subject: Subject, on_progress: OnProgress) -> None:
        self._subject = subject
        self._tell = on_progress
        self._ids: set[str] = set()
        self._refused: set[str] = set()
        self._suspects: dict[str, set[Difference]] = {}
        self._surplus: dict[str, set[int]] = {}
        self._foreign: set[str] = set()
        self._documents = 0

    @property
    def surplus(self) -> Mapping[str, set[int]]:
        """Numbers of the surplus chunks that were found, by document."""
        return self._surplus

    async def check(self) -> Report:
        """Look at everything once, at what differs again, and tell what stayed different.

        Raises:
            FailureClass: a part failed.
        """
        await self._subject.stored.built(lambda documents: self._tell("index", documents, None))
        await self._check_rows()
        await self._check_documents()
        await self._check_hashes()
        differing = await self._look_again()
        return Report(
            pipeline=self._subject.pipeline,
            rows=len(self._ids),
            documents=self._documents,
            refused=len(self._refused),
            differing=differing,
            foreign_keys=tuple(sorted(self._foreign)),
        )

    async def _check_rows(self) -> None:
        """Every row against its document."""
        subject = self._subject
        total = await subject.reader.count_estimate(subject.table)
        after = None
        while True:
            read = await subject.reader.chunk(subject.table, after, ROWS_PER_CHUNK, subject.builder.columns)
            rows = {document_id(subject.rows.key(row)): row for row in read.rows}
            self._ids |= rows.keys()
            self._suspect(await self._compare(rows))
            self._tell("rows", len(self._ids), max(total, len(self._ids)))
            if len(read.rows) < ROWS_PER_CHUNK:
                return
            after = subject.rows.key(read.rows[-1])

    async def _check_documents(self) -> None:
        """Documents without a row."""
        stored = self._subject.stored
        async for ids in stored.ids(ROWS_PER_CHUNK):
            present = [one for one, there in zip(ids, await stored.present(ids), strict=True) if there]
            self._documents += len(present)
            for identifier in present:
                if identifier not in self._ids:
                    self._suspects.setdefault(identifier, set()).add(Difference.ORPHANED)
            self._tell("documents", self._documents, None)

    async def _check_hashes(self) -> None:
        """Hashes beyond those of their document, and those that a search does not find."""
        stored = self._subject.stored
        seen = 0
        async for batch in stored.hashes(ROWS_PER_CHUNK):
            counts = await stored.chunk_counts([identifier for _, identifier, _ in batch])
            searchable = await stored.searchable([key for key, _, _ in batch])
            for (key, identifier, number), count in zip(batch, counts, strict=True):
                if not identifier:
                    self._foreign.add(key)
                    continue
                if number >= (count or 0):
                    self._surplus.setdefault(identifier, set()).add(number)
                    self._suspects.setdefault(identifier, set()).add(Difference.SURPLUS_CHUNKS)
                if key not in searchable:
                    self._suspects.setdefault(identifier, set()).add(Difference.NOT_INDEXED)
            seen += len(batch)
            self._tell("index", seen, None)

    def _suspect(self, looks: Mapping[str, _Look]) -> None:
        for identifier, look in looks.items():
            if look.differences:
                self._suspects.setdefault(identifier, set()).update(look.differences)

    async def _look_again(self) -> dict[str, frozenset[Difference]]:
        """A change on its way looks like a difference: only what stays the same for several looks is one."""
        before: dict[str, tuple[_Look, int]] = {}
        told: dict[str, frozenset[Difference]] = {}
        suspects = sorted(self._suspects)
        for number in range(LOOKS_MAX):
            if not suspects:
                break
            if number:
                await asyncio.sleep(LOOK_PAUSE_S)
            left = []
            for start in range(0, len(suspects), ROWS_PER_CHUNK):
                part = suspects[start : start + ROWS_PER_CHUNK]
                for identifier, look in (await self._look(part)).items():
                    if not look.differences:
                        continue
                    earlier, count = before.get(identifier, (look, 0))
                    count = count + 1 if earlier == look else 1
                    before[identifier] = (look, count)
                    if count >= LOOKS or number == LOOKS_MAX - 1:
                        told[identifier] = look.differences
                    else:
                        left.append(identifier)
                self._tell("again", start + len(part), len(suspects))
            suspects = left
        return told

    async def _look(self, ids: Sequence[str]) -> dict[str, _Look]:
        """Everything about these documents, from the rows as they are now."""
        rows = await self._reread(ids)
        looks = await self._compare(rows)
        surplus = await self._still_surplus(ids)
        lost = await self._not_indexed(ids)
        return {
            one: _Look(look.differences | _also(rows[one], one in surplus, one in lost), look.version)
            for one, look in looks.items()
        }

    async def _still_surplus(self, ids: Sequence[str]) -> set[str]:
        stored = self._subject.stored
        hashes = [(one, number) for one in ids for number in sorted(self._surplus.get(one, ()))]
        counts = dict(zip(ids, await stored.chunk_counts(ids), strict=True))
        there = await stored.existing([stored.key(one, number) for one, number in hashes])
        return {
            one
            for (one, number), exists in zip(hashes, there, strict=True)
            if exists and number >= (counts[one] or 0)
        }

    async def _not_indexed(self, ids: Sequence[str]) -> set[str]:
        """Documents of which a search does not find every chunk that Redis holds."""
        stored = self._subject.stored
        held = {
            stored.key(one, number): one
            for one, document in zip(ids, await stored.read(ids), strict=True)
            for number, chunk in enumerate(document.chunks)
            if chunk is not None
        }
        searchable = await stored.searchable(list(held))
        return {one for key, one in held.items() if key not in searchable}

    async def _reread(self, ids: Iterable[str]) -> dict[str, Row | None]:
        """The rows now; None where there is none, also for an id that the table's key type cannot hold."""
        columns = len(self._subject.table.key)
        keys = {one: document_key(one, columns) for one in ids}
        found: dict[str, Row | None] = dict.fromkeys(keys)
        fitting = {one: key for one, key in keys.items() if len(key) == columns}
        try:
            read = await self._subject.rows.reread(list(fitting.values()))
        except StopPipeline:
            if all(one in self._ids for one in fitting):
                raise
            if len(fitting) > 1:
                for one in fitting:
                    found.update(await self._reread([one]))
            return found
        found.update((one, row) for one, (_, row) in zip(fitting, read, strict=True))
        return found

    async def _compare(self, rows: Mapping[str, Row | None]) -> dict[str, _Look]:
        """Rows against bookkeeping, hashes and vectors."""
        ids = list(rows)
        looks: dict[str, _Look] = {}
        vectors: list[tuple[str, str, bytes]] = []
        for one, document in zip(ids, await self._subject.stored.read(ids), strict=True):
            differences = self._of_row(one, rows[one], document)
            for chunk in document.chunks:
                if chunk is None or Difference.ORPHANED in differences:
                    continue
                if self._has_vector(chunk):
                    vectors.append((one, chunk.fields.get("text", ""), chunk.vector or b""))
                else:
                    differences.add(Difference.WRONG_VECTOR)
            version = document.stored.version.encode() if document.stored else ""
            looks[one] = _Look(frozenset(differences), version)
        for one in await self._wrong_vectors(vectors):
            looks[one] = _Look(looks[one].differences | {Difference.WRONG_VECTOR}, looks[one].version)
        return looks

    def _of_row(self, identifier: str, row: Row | None, document: StoredDocument) -> set[Difference]:
        if row is None:
            return {Difference.ORPHANED} if document.present else set()
        try:
            wanted = self._subject.builder.build(row)
        except RejectRow:
            self._refused.add(identifier)
            return set()
        if not document.present:
            return {Difference.MISSING}
        assert document.stored is not None
        chunks = self._subject.chunk(wanted.text) if wanted.text.strip() else ()
        differences = set()
        held = [chunk for chunk in document.chunks if chunk is not None]
        if len(held) < len(document.chunks):
            differences.add(Difference.LOST_CHUNKS)
        if (
            document.stored.content_hash != wanted.content_hash
            or document.stored.metadata_hash != wanted.metadata_hash
            or len(document.chunks) != len(chunks)
            or any(
                chunk is not None and not _renders(chunk, identifier, number, text, wanted)
                for number, (chunk, text) in enumerate(zip(document.chunks, chunks, strict=False))
            )
        ):
            differences.add(Difference.STALE)
        return differences

    def _has_vector(self, chunk: StoredChunk) -> bool:
        bytes_per_number = 4 if self._subject.vector_type == "FLOAT32" else 2
        return chunk.vector is not None and len(chunk.vector) == bytes_per_number * self._subject.dimension

    async def _wrong_vectors(self, vectors: Sequence[tuple[str, str, bytes]]) -> set[str]:
        """Ids of which a stored vector is not the embedding of the stored text."""
        subject = self._subject
        if subject.embedding is None or not vectors:
            return set()
        embedded = await subject.embedding.embed([text for _, text, _ in vectors], subject.patience)
        fresh = [
            np.zeros(subject.dimension, np.float32)
            if isinstance(one, RejectRow)
            else decode([one], "FLOAT32")[0]
            for one in embedded.vectors
        ]
        held = decode([vector for _, _, vector in vectors], subject.vector_type)
        return {
            one
            for (one, _, _), a, b in zip(vectors, held, fresh, strict=True)
            if not float(a @ b) >= COSINE_MIN * float(np.linalg.norm(a) * np.linalg.norm(b)) or not a.any()
        }


def _renders(chunk: StoredChunk, identifier: str, number: int, text: str, wanted: Document) -> bool:
    """Whether a hash holds what it must; fields that others put there are theirs."""
    own = {"id": identifier, "chunk": str(number), "text": text, **dict(wanted.metadata)}
    return all(chunk.fields.get(name) == value for name, value in own.items()) and not any(
        name in chunk.fields for name in wanted.absent
    )


def _also(row: Row | None, surplus: bool, not_indexed: bool) -> frozenset[Difference]:
    """Hashes of a document without a row are orphans, not surplus."""
    found = set()
    if surplus:
        found.add(Difference.ORPHANED if row is None else Difference.SURPLUS_CHUNKS)
    if not_indexed and row is not None:
        found.add(Difference.NOT_INDEXED)
    return frozenset(found)

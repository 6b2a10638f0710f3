"""Rows against their documents: by the digests that the bookkeeping keeps, or by all that Redis holds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from daemon.core.change import Row
from daemon.core.document import Document
from daemon.core.vectors import decode
from daemon.errors import RejectRow
from daemon.verify.differences import Difference
from daemon.verify.sides import Sides
from daemon.verify.stored import StoredChunk, StoredDocument

COSINE_MIN = 0.999
"""Between a stored vector and its text's embedding now; FLOAT16, BFLOAT16 and another batch stay above it."""

Wanted = Document | RejectRow | None
"""What a document must be; RejectRow: the row can never be a document; None: there is no row."""


@dataclass(frozen=True, slots=True)
class Look:
    """`version` of the stored document: while it changes, the document is being written."""

    differences: frozenset[Difference]
    version: str


class RowComparison:
    """Compares what rows render to with what is stored."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides

    def rendered(self, rows: Mapping[str, Row | None]) -> dict[str, Wanted]:
        """Return what the documents of these rows must be."""
        return {identifier: None if row is None else self._render(row) for identifier, row in rows.items()}

    async def suspects(self, wanted: Mapping[str, Wanted]) -> set[str]:
        """Find the documents that differ by their digests, or of which a chunk, its vector or its entry in the index
        is not there. Reads no text and no vector: a few bytes a document.
        """
        stored = self._sides.stored
        held = dict(zip(wanted, await stored.bookkeeping(list(wanted)), strict=True))
        suspects: set[str] = set()
        chunks: dict[str, str] = {}
        for identifier, document in wanted.items():
            if isinstance(document, RejectRow):
                continue
            digests = None if document is None else (document.content_hash, document.metadata_hash)
            if digests != held[identifier].digests:
                suspects.add(identifier)
            else:
                chunks.update(
                    (stored.layout.chunk_key(identifier, number), identifier)
                    for number in range(held[identifier].chunks)
                )
        sizes = await stored.vector_sizes(list(chunks))
        searchable = await stored.searchable(list(chunks))
        right = self._sides.vector_bytes
        for (key, identifier), size in zip(chunks.items(), sizes, strict=True):
            if size != right or key not in searchable:
                suspects.add(identifier)
        return suspects

    async def looks(self, wanted: Mapping[str, Wanted]) -> dict[str, Look]:
        """Find all differences of these documents, except chunks beyond those that they have."""
        documents = dict(zip(wanted, await self._sides.stored.read(list(wanted)), strict=True))
        differences = {
            identifier: self._of_row(identifier, wanted[identifier], document)
            for identifier, document in documents.items()
        }
        vectors: list[tuple[str, str, bytes]] = []
        held: dict[str, str] = {}
        stored = self._sides.stored
        for identifier, document in documents.items():
            if wanted[identifier] is None:
                continue
            for number, chunk in enumerate(document.chunks):
                if chunk is None:
                    continue
                held[stored.layout.chunk_key(identifier, number)] = identifier
                if chunk.vector is not None and len(chunk.vector) == self._sides.vector_bytes:
                    vectors.append((identifier, chunk.fields.get("text", ""), chunk.vector))
                else:
                    differences[identifier].add(Difference.WRONG_VECTOR)
        for identifier in await self._wrong_vectors(vectors):
            differences[identifier].add(Difference.WRONG_VECTOR)
        searchable = await stored.searchable(list(held))
        for key, identifier in held.items():
            if key not in searchable:
                differences[identifier].add(Difference.NOT_INDEXED)
        return {
            identifier: Look(
                frozenset(differences[identifier]),
                document.stored.version.encode() if document.stored else "",
            )
            for identifier, document in documents.items()
        }

    async def look_again(self, ids: Sequence[str], surplus: Mapping[str, Iterable[int]]) -> dict[str, Look]:
        """Find all differences of these documents, from the rows as they are now.

        `surplus`: numbers of chunks that may be beyond those that a document has, by document.
        """
        rows = {identifier: row for identifier, _, row in await self._sides.reread(ids)}
        looks = await self.looks(self.rendered(rows))
        stored = self._sides.stored
        hashes = [(identifier, number) for identifier in ids for number in surplus.get(identifier, ())]
        kept = dict(zip(ids, await stored.bookkeeping(ids), strict=True))
        there = await stored.existing([stored.layout.chunk_key(*place) for place in hashes])
        for (identifier, number), exists in zip(hashes, there, strict=True):
            if exists and number >= kept[identifier].chunks:
                # Hashes of a document without a row are orphans.
                kind = Difference.ORPHANED if rows[identifier] is None else Difference.SURPLUS_CHUNKS
                looks[identifier] = Look(looks[identifier].differences | {kind}, looks[identifier].version)
        return looks

    def _render(self, row: Row) -> Document | RejectRow:
        try:
            return self._sides.projection.builder.build(row)
        except RejectRow as error:
            return error

    def _of_row(self, identifier: str, wanted: Wanted, document: StoredDocument) -> set[Difference]:
        if wanted is None:
            return {Difference.ORPHANED} if document.present else set()
        if isinstance(wanted, RejectRow):
            return set()
        if not document.present:
            return {Difference.MISSING}
        assert document.stored is not None
        chunks = self._sides.projection.chunk(wanted.text) if wanted.text.strip() else ()
        differences = set()
        if any(chunk is None for chunk in document.chunks):
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

    async def _wrong_vectors(self, vectors: Sequence[tuple[str, str, bytes]]) -> set[str]:
        """Return the ids of which a stored vector is not the embedding of the stored text."""
        sides = self._sides
        if sides.embedding is None or not vectors:
            return set()
        embedded = await sides.embedding.embed([text for _, text, _ in vectors], sides.projection.patience)
        fresh = [
            np.zeros(sides.dimension, np.float32)
            if isinstance(vector, RejectRow)
            else decode([vector], "FLOAT32")[0]
            for vector in embedded.vectors
        ]
        held = decode([vector for _, _, vector in vectors], sides.vector_type)
        return {
            identifier
            for (identifier, _, _), a, b in zip(vectors, held, fresh, strict=True)
            if not float(a @ b) >= COSINE_MIN * float(np.linalg.norm(a) * np.linalg.norm(b)) or not a.any()
        }


def _renders(chunk: StoredChunk, identifier: str, number: int, text: str, wanted: Document) -> bool:
    """Return whether a hash holds what it must; fields that others put there are theirs."""
    own = {"id": identifier, "chunk": str(number), "text": text, **dict(wanted.metadata)}
    return all(chunk.fields.get(name) == value for name, value in own.items()) and not any(
        name in chunk.fields for name in wanted.absent
    )

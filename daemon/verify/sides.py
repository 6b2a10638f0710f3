"""The two sides of a check: one pipeline's table, and one version of its index."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from daemon.core.change import Row
from daemon.core.vectors import size_bytes
from daemon.embedding.batches import EmbeddingBatches
from daemon.errors import StopPipeline
from daemon.index.layout import document_id, document_key
from daemon.projection.build import Projection, TableRows
from daemon.projection.projector import SourceRow
from daemon.verify.stored import StoredDocuments

P = ParamSpec("P")
T = TypeVar("T")
ROWS_PER_CHUNK = 500
_KEYS_PER_READ = 200
Key = tuple[str, ...]
"""Values of the primary key's columns as text, in the key's order."""

OnProgress = Callable[[str, int, int | None], None]
"""(step, done, total): `rows`, `documents`, `index`, `backfill`, `sweep`."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Some rows of a key range, by document id; `last`: key of the last; None: the range has no more."""

    rows: Mapping[str, Row]
    last: Key | None


class Sides:
    """One pipeline's table and index, with all that is needed to look at them.

    Args:
        vectors: also recompute embeddings.

    Attributes:
        stored: what Redis holds.
        embedding: gives FLOAT32; None: vectors are not recomputed.
    """

    def __init__(self, projection: Projection, *, vectors: bool) -> None:
        texts_max, part = projection.config.embedding.batch_texts_max, f"embedder {projection.version.model}"
        self.projection = projection
        self.stored = StoredDocuments(projection.client, projection.writer)
        self.embedding = (
            EmbeddingBatches(projection.embedder, texts_max, "FLOAT32", part) if vectors else None
        )
        self.vector_type = projection.version.type
        self.dimension = projection.space.dimension
        self.vector_bytes = size_bytes(self.vector_type, self.dimension)
        self._keys = TableRows(projection.reader, projection.table, (), _KEYS_PER_READ)

    async def batches(self, after: Key | None, until: Key | None) -> AsyncIterator[RowBatch]:
        """Give the rows of a key range in the order of the primary key; each batch is a snapshot of its own."""
        key = self.projection.rows.key
        while True:
            read = await self._chunk(after, ROWS_PER_CHUNK, until)
            after = key(read[-1]) if len(read) == ROWS_PER_CHUNK else None
            yield RowBatch({document_id(key(row)): row for row in read}, after)
            if after is None:
                return

    async def reread(self, ids: Sequence[str], *, keys_only: bool = False) -> list[SourceRow]:
        """Read the rows of these documents as they are now, each with the snapshot that it was read at.

        An id that the table's key type cannot hold has no row; its snapshot is as good as any.

        Args:
            keys_only: read nothing but whether a row is there.

        Raises:
            StopPipeline: the table is not what the pipeline was built for.
        """
        columns = len(self.projection.table.key)
        keys = {identifier: document_key(identifier, columns) for identifier in ids}
        fitting = {identifier: key for identifier, key in keys.items() if len(key) == columns}
        rows: list[SourceRow] = []
        if len(fitting) < len(keys):
            rows += await self._absent(keys.keys() - fitting.keys())
        if not fitting:
            return rows
        reader = self._keys if keys_only else self.projection.rows
        try:
            read = await self._call(reader.reread, list(fitting.values()))
        except StopPipeline:
            left = list(fitting)
            if len(left) > 1:
                half = len(left) // 2
                for part in (left[:half], left[half:]):
                    rows += await self.reread(part, keys_only=keys_only)
                return rows
            # The key or the table? A table that has changed under us cannot be read from its beginning either.
            await self._chunk(None, 1, None)
            return rows + await self._absent(left)
        return rows + [(identifier, *reread) for identifier, reread in zip(fitting, read, strict=True)]

    async def _absent(self, ids: Iterable[str]) -> list[SourceRow]:
        version = await self._call(self.projection.reader.snapshot)
        return [(identifier, version, None) for identifier in ids]

    async def _chunk(self, after: Key | None, limit: int, until: Key | None) -> Sequence[Row]:
        table, columns = self.projection.table, self.projection.builder.columns
        read = await self._call(self.projection.reader.chunk, table, after, limit, columns, until=until)
        return read.rows

    async def _call(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.projection.patience.call(self.projection.reader.part, work, *args, **kwargs)

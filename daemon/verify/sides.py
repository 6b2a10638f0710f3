"""The two sides of a check: one pipeline's table, and one version of its index."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from daemon.core.change import Row
from daemon.core.document import DocumentBuilder
from daemon.embedding.batches import EmbeddingBatches
from daemon.errors import StopPipeline
from daemon.index.connection import Client
from daemon.index.layout import document_id, document_key
from daemon.patience import Patience
from daemon.projection.build import Projection, TableRows
from daemon.projection.projector import SourceRow
from daemon.source.postgres.reader import PostgresReader, TableSchema
from daemon.verify.stored import StoredDocuments

P = ParamSpec("P")
T = TypeVar("T")
ROWS_PER_CHUNK = 500
Key = tuple[str, ...]

OnProgress = Callable[[str, int, int | None], None]
"""(step, done, total): `rows`, `documents`, `index`, `backfill`, `sweep`."""


@dataclass(frozen=True)
class Sides:
    """One pipeline's table and index, with all that is needed to look at them.

    Attributes:
        chunk: cuts a text into what is embedded.
        embedding: gives FLOAT32; None: vectors are not recomputed.
        vector_type: number format of the index's vectors.
    """

    pipeline: str
    client: Client
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

    @property
    def vector_bytes(self) -> int:
        return (4 if self.vector_type == "FLOAT32" else 2) * self.dimension

    async def call_source(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the source answers; it is waited for."""
        return await self.patience.call(self.reader.part, work, *args, **kwargs)


def sides_of(projection: Projection, *, vectors: bool) -> Sides:
    """Return what a check needs of a projection; `vectors`: also recompute embeddings."""
    texts_max, part = projection.config.embedding.batch_texts_max, f"embedder {projection.version.model}"
    return Sides(
        pipeline=projection.pipeline.name,
        client=projection.client,
        reader=projection.reader,
        table=projection.table,
        rows=projection.rows,
        builder=projection.builder,
        chunk=projection.chunk,
        stored=StoredDocuments(projection.client, projection.writer),
        embedding=EmbeddingBatches(projection.embedder, texts_max, "FLOAT32", part) if vectors else None,
        patience=projection.patience,
        vector_type=projection.pipeline.index.type,
        dimension=projection.space.dimension,
    )


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Some rows of a key range, by document id; `last`: key of the last; None: the range has no more."""

    rows: Mapping[str, Row]
    last: Key | None


async def batches(sides: Sides, after: Key | None, until: Key | None) -> AsyncIterator[RowBatch]:
    """Give the rows of a key range in the order of the primary key; each batch is a snapshot of its own."""
    while True:
        read = await sides.call_source(
            sides.reader.chunk, sides.table, after, ROWS_PER_CHUNK, sides.builder.columns, until=until
        )
        rows = {document_id(sides.rows.key(row)): row for row in read.rows}
        after = sides.rows.key(read.rows[-1]) if len(read.rows) == ROWS_PER_CHUNK else None
        yield RowBatch(rows, after)
        if after is None:
            return


async def reread(sides: Sides, ids: Sequence[str], rows: TableRows | None = None) -> list[SourceRow]:
    """Read the rows of these documents as they are now, each with the snapshot that it was read at.

    An id that the table's key type cannot hold has no row; its snapshot is as good as any.

    Args:
        rows: what reads them; None: with every column that the pipeline needs.

    Raises:
        StopPipeline: the table is not what the pipeline was built for.
    """
    reader = rows or sides.rows
    columns = len(sides.table.key)
    keys = {one: document_key(one, columns) for one in ids}
    fitting = {one: key for one, key in keys.items() if len(key) == columns}
    found: list[SourceRow] = []
    if len(fitting) < len(keys):
        version = await sides.call_source(sides.reader.snapshot)
        found += [(one, version, None) for one in keys.keys() - fitting.keys()]
    if not fitting:
        return found
    try:
        read = await sides.call_source(reader.reread, list(fitting.values()))
    except StopPipeline:
        rest = list(fitting)
        if len(rest) > 1:
            half = len(rest) // 2
            return found + await reread(sides, rest[:half], rows) + await reread(sides, rest[half:], rows)
        # The key or the table? A table that has changed under us cannot be read from its beginning either.
        await sides.call_source(sides.reader.chunk, sides.table, None, 1, sides.builder.columns)
        version = await sides.call_source(sides.reader.snapshot)
        return [*found, (rest[0], version, None)]
    return found + [(one, version, row) for one, (version, row) in zip(fitting, read, strict=True)]


def key_rows(sides: Sides, rows_max: int = 200) -> TableRows:
    """Return what reads nothing but keys: whether rows are there."""
    return TableRows(sides.reader, sides.table, (), rows_max)

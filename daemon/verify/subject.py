"""What a check looks at: one pipeline's table and one version of its index."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from daemon.core.change import Row
from daemon.core.document import DocumentBuilder
from daemon.core.vectors import size_bytes
from daemon.embedding.batches import EmbeddingBatches
from daemon.errors import StopPipeline
from daemon.index.layout import document_id, document_key
from daemon.patience import Patience
from daemon.projection.build import TableRows
from daemon.projection.projector import SourceRow
from daemon.source.postgres.reader import PostgresReader, TableSchema
from daemon.verify.stored import StoredDocuments

ROWS_PER_CHUNK = 500
Key = tuple[str, ...]

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

    @property
    def vector_bytes(self) -> int:
        return size_bytes(self.vector_type, self.dimension)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of a key range, by document id; `last`: key of the last; None: the range has no more."""

    rows: Mapping[str, Row]
    last: Key | None


async def batches(subject: Subject, after: Key | None, until: Key | None) -> AsyncIterator[RowBatch]:
    """The rows of a key range in the order of the primary key; each batch is a snapshot of its own."""
    while True:
        read = await subject.patience.call(
            "source",
            lambda after=after: subject.reader.chunk(  # type: ignore[misc]
                subject.table, after, ROWS_PER_CHUNK, subject.builder.columns, until=until
            ),
        )
        rows = {document_id(subject.rows.key(row)): row for row in read.rows}
        after = subject.rows.key(read.rows[-1]) if len(read.rows) == ROWS_PER_CHUNK else None
        yield RowBatch(rows, after)
        if after is None:
            return


async def reread(subject: Subject, ids: Sequence[str], rows: TableRows | None = None) -> list[SourceRow]:
    """The rows of these documents as they are now, each with the snapshot that it was read at.

    An id that the table's key type cannot hold has no row; its snapshot is as good as any.

    Args:
        rows: what reads them; None: with every column that the pipeline needs.

    Raises:
        StopPipeline: the table is not what the pipeline was built for.
    """
    reader = rows or subject.rows
    columns = len(subject.table.key)
    keys = {one: document_key(one, columns) for one in ids}
    fitting = {one: key for one, key in keys.items() if len(key) == columns}
    found: list[SourceRow] = []
    if len(fitting) < len(keys):
        version = await subject.patience.call("source", subject.reader.snapshot)
        found += [(one, version, None) for one in keys.keys() - fitting.keys()]
    if not fitting:
        return found
    try:
        read = await subject.patience.call("source", lambda: reader.reread(list(fitting.values())))
    except StopPipeline:
        rest = list(fitting)
        if len(rest) > 1:
            half = len(rest) // 2
            return found + await reread(subject, rest[:half], rows) + await reread(subject, rest[half:], rows)
        # The key or the table? A table that has changed under us cannot be read from its beginning either.
        await subject.patience.call(
            "source", lambda: subject.reader.chunk(subject.table, None, 1, subject.builder.columns)
        )
        version = await subject.patience.call("source", subject.reader.snapshot)
        return [*found, (rest[0], version, None)]
    return found + [(one, version, row) for one, (version, row) in zip(fitting, read, strict=True)]


def key_rows(subject: Subject, rows_max: int = 200) -> TableRows:
    """Reads nothing but keys: whether rows are there."""
    return TableRows(subject.reader, subject.table, (), rows_max)

"""One pipeline's projection into one of its index versions, opened by a process that is not the daemon.

Workflow activities, checks and repairs read the table, render, embed and write as the daemon does, under the same
version rule, through the slow lane.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from daemon.core.change import Row
from daemon.core.document import DocumentBuilder, Field
from daemon.core.version import SnapshotVersion
from daemon.embedding.batches import EmbeddingBatches
from daemon.embedding.chunker import Chunker
from daemon.embedding.embedder import Embedder, EmbeddingSpace
from daemon.embedding.factory import make_embedder
from daemon.errors import ConfigError
from daemon.index import schema
from daemon.index.connection import Client, connect
from daemon.index.donor import donor
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion, Versions, VersionTable
from daemon.index.writer import IndexWriter, load_functions
from daemon.patience import Patience
from daemon.projection.projector import DeadLetters, Projector
from daemon.projection.slow_lane import EmbedderShare, SlowLane
from daemon.settings import Config, Pipeline, PostgresSource
from daemon.source.envelope import key_text
from daemon.source.postgres.reader import PostgresReader, TableSchema
from daemon.telemetry.metrics import Metrics


class TableRows:
    """Re-reads rows of one table, in queries of bounded size."""

    def __init__(
        self, reader: PostgresReader, table: TableSchema, columns: Sequence[str], rows_max: int
    ) -> None:
        self._reader = reader
        self._table = table
        self._columns = tuple(dict.fromkeys((*table.key, *columns)))
        self._rows_max = rows_max

    async def reread(self, keys: Sequence[tuple[str, ...]]) -> list[tuple[SnapshotVersion, Row | None]]:
        """The row of each key, with the snapshot it was read at; None where there is none."""
        found: list[tuple[SnapshotVersion, Row | None]] = []
        for start in range(0, len(keys), self._rows_max):
            part = keys[start : start + self._rows_max]
            read = await self._reader.reread(self._table, part, self._columns)
            rows = {self.key(row): row for row in read.rows}
            found += [(read.version, rows.get(key)) for key in part]
        return found

    def key(self, row: Row) -> tuple[str, ...]:
        return tuple(key_text(row[column]) for column in self._table.key)


@dataclass(frozen=True)
class Projection:
    """Everything between a table and one version of its index.

    Attributes:
        pipeline: with the settings that the version was made with.
        versions: the registry of the pipeline.
        projector: at once; the slow lane gives way to live changes.
    """

    config: Config
    pipeline: Pipeline
    source: PostgresSource
    version: IndexVersion
    versions: Versions
    client: Client
    reader: PostgresReader
    table: TableSchema
    rows: TableRows
    builder: DocumentBuilder
    chunk: Chunker
    embedder: Embedder
    space: EmbeddingSpace
    writer: IndexWriter
    projector: Projector
    lane: SlowLane
    patience: Patience

    async def ensure_index(self) -> None:
        """Load the functions and make the index, if Redis lost them; writing needs both."""
        await load_functions(self.client)
        await schema.ensure(self.client, self.pipeline.name, self.version)


@asynccontextmanager
async def opened(
    config: Config,
    pipeline: Pipeline,
    *,
    patience: Patience,
    metrics: Metrics,
    dead_letters: DeadLetters,
    version: int | None = None,
    share: EmbedderShare | None = None,
) -> AsyncIterator[Projection]:
    """Connect to the parts.

    Args:
        pipeline: as the configuration has it.
        patience: how long a part that is away is waited for.
        dead_letters: where refused rows go.
        version: of the index; None: the one that readers see.
        share: of the embedder, among all projections of a process; None: this is the only one.

    Raises:
        ConfigError: the pipeline mirrors no table, has no such index version, or the model is not that version's.
        FailureClass: a part failed.
    """
    source = config.source(pipeline.source)
    if not isinstance(source, PostgresSource):
        raise ConfigError(
            f"pipeline {pipeline.name!r} mirrors a topic of events: there is no table to read its rows from"
        )
    client, reader = connect(config.redis), PostgresReader(source)
    embedder: Embedder | None = None
    try:
        versions = Versions(client, pipeline.name)
        registry: VersionTable = await patience.call("redis", versions.known)
        made = registry.version(version)
        embedder = make_embedder(made.embedding(config.embedding))
        space = await patience.call("embedder", embedder.start)
        made.check_space(space, pipeline.name)
        settings = made.pipeline(pipeline)
        table = await patience.call("source", lambda: reader.schema(pipeline.table))
        builder = document_builder(settings, made)
        check_columns(settings, table, builder.columns)
        writer = IndexWriter(client, Layout(pipeline.name, made.number), config.redis.pipeline_commands_max)
        rows = TableRows(reader, table, builder.columns, source.reread_rows_max)
        chunk = Chunker(settings.chunking)
        projector = Projector(
            builder=builder,
            chunk=chunk,
            writer=writer,
            embedding=EmbeddingBatches(embedder, config.embedding.batch_texts_max, settings.index.type),
            rows=rows,
            dead_letters=dead_letters,
            patience=patience,
            metrics=metrics.pipeline(pipeline.name, seen=False),
            marker_ttl_s=config.redis.delete_marker_ttl_s,
            donor=donor(client, pipeline.name, registry, made, config.redis.pipeline_commands_max),
        )
        lane = SlowLane(projector, builder, client, share or EmbedderShare(config.slow_lane))
        yield Projection(
            config=config,
            pipeline=settings,
            source=source,
            version=made,
            versions=versions,
            client=client,
            reader=reader,
            table=table,
            rows=rows,
            builder=builder,
            chunk=chunk,
            embedder=embedder,
            space=space,
            writer=writer,
            projector=projector,
            lane=lane,
            patience=patience,
        )
    finally:
        await reader.close()
        if embedder is not None:
            await embedder.close()
        await client.aclose()


def document_builder(pipeline: Pipeline, version: IndexVersion) -> DocumentBuilder:
    """What renders the rows of a pipeline for an index version."""
    fields = [Field(field.column, field.field, field.type) for field in pipeline.metadata]
    return DocumentBuilder(pipeline.text, fields, version.space(), pipeline.text_bytes_max)


def check_columns(pipeline: Pipeline, table: TableSchema, columns: Sequence[str]) -> None:
    """Raises ConfigError where the table lacks a column that the pipeline needs, or a primary key."""
    names = [column.name for column in table.columns]
    missing = [column for column in columns if column not in names]
    if missing:
        raise ConfigError(
            f"pipeline {pipeline.name!r} names {', '.join(missing)}, which {pipeline.table} does not have; "
            f"its columns are {', '.join(names)}"
        )
    if not table.key:
        raise ConfigError(
            f"{pipeline.table} has no primary key; add one: ALTER TABLE {pipeline.table} ADD PRIMARY KEY (...)"
        )

"""The only place that puts a projector together, for the daemon, for workflow activities and for checks alike.

`assemble` makes one out of parts that are there already, as the daemon has them. `opened` and `opened_events` connect
to the parts first, for a process that is not the daemon: it reads the table, renders, embeds and writes as the daemon
does, under the same version rule. They refuse a database that is not the one that the index was written from: a sweep
or a repair from another database would empty the index.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from daemon.core.change import Row
from daemon.core.document import DocumentBuilder, Field
from daemon.core.version import SnapshotVersion
from daemon.embedding.batches import EmbeddingBatches
from daemon.embedding.chunking import Chunker
from daemon.embedding.embedder import Embedder, EmbeddingSpace, TextEmbedder
from daemon.embedding.factory import make_embedder
from daemon.errors import ConfigError, FailureClass, RejectRow
from daemon.index import schema
from daemon.index.connection import Client, connect
from daemon.index.donor import VectorDonor, donor
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion, Versions, VersionTable
from daemon.index.writer import IndexWriter, load_functions
from daemon.patience import Patience
from daemon.projection.projector import DeadLetters, Projector, Reread, RowSource
from daemon.projection.slow_lane import EmbedderShare, SlowLane
from daemon.settings import Config, Pipeline, PostgresSource
from daemon.source.envelope import key_text
from daemon.source.events import EventDecoder
from daemon.source.postgres.failures import refusal_of_read
from daemon.source.postgres.identity import check_same_source
from daemon.source.postgres.reader import PostgresReader
from daemon.source.postgres.schema import TableSchema
from daemon.telemetry.metrics import Metrics, PipelineMetrics


class TableRows:
    """Reads rows of one table again, in queries of bounded size."""

    def __init__(
        self, reader: PostgresReader, table: TableSchema, columns: Sequence[str], rows_max: int
    ) -> None:
        self.part = reader.part
        self._reader = reader
        self._table = table
        self._columns = tuple(dict.fromkeys((*table.key, *columns)))
        self._rows_max = rows_max

    async def reread(self, keys: Sequence[tuple[str, ...]]) -> list[tuple[SnapshotVersion, Row | None]]:
        """Return the row of each key, with the snapshot it was read at; None where there is none.

        Raises:
            FailureClass: the source failed, or one of the rows cannot be read.
        """
        results: list[tuple[SnapshotVersion, Row | None]] = []
        for start in range(0, len(keys), self._rows_max):
            part = keys[start : start + self._rows_max]
            read = await self._reader.reread(self._table, part, self._columns)
            rows = {self.key(row): row for row in read.rows}
            results += [(read.version, rows.get(key)) for key in part]
        return results

    async def reread_each(self, keys: Sequence[tuple[str, ...]]) -> list[Reread]:
        """Return the row of each key as `reread` does; one that cannot be read does not hold up its neighbours.

        Raises:
            FailureClass: the source failed.
        """
        try:
            return [*await self.reread(keys)]
        except (FailureClass, ValueError, ArithmeticError, LookupError) as error:
            refusal: RejectRow | None = refusal_of_read(error)
            if refusal is None:
                raise
        if len(keys) == 1:
            return [refusal]
        half = len(keys) // 2
        return [*await self.reread_each(keys[:half]), *await self.reread_each(keys[half:])]

    def key(self, row: Row) -> tuple[str, ...]:
        return tuple(key_text(row[column]) for column in self._table.key)


@dataclass(frozen=True)
class Assembly:
    """From a row to its document: one pipeline into one version of its index.

    Attributes:
        pipeline: with the settings that the version was made with.
        projector: writes at once; a slow lane gives way to live changes.
    """

    pipeline: Pipeline
    version: IndexVersion
    client: Client
    builder: DocumentBuilder
    chunk: Chunker
    writer: IndexWriter
    projector: Projector

    async def ensure_index(self) -> None:
        """Load the functions and make the index, if Redis lost them; writing needs both."""
        await load_functions(self.client)
        await schema.ensure(self.client, self.pipeline.name, self.version)


def assemble(
    config: Config,
    pipeline: Pipeline,
    version: IndexVersion,
    *,
    client: Client,
    embedder: TextEmbedder,
    rows: RowSource | None,
    dead_letters: DeadLetters,
    patience: Patience,
    metrics: PipelineMetrics,
    donor: VectorDonor | None = None,
) -> Assembly:
    """Put a projector together from parts that are connected.

    Args:
        pipeline: as the configuration has it; what the version was made with takes the place of what it says.
        rows: reads rows of the pipeline's table again; None where the source cannot be asked (event topics).
    """
    settings = version.pipeline(pipeline)
    builder = document_builder(settings, version)
    chunk = Chunker(settings.chunking)
    writer = IndexWriter(client, Layout(pipeline.name, version.number), config.redis.pipeline_commands_max)
    texts_max = config.embedding.batch_texts_max
    projector = Projector(
        builder=builder,
        chunk=chunk,
        writer=writer,
        embedding=EmbeddingBatches(embedder, texts_max, settings.index.type, f"embedder {version.model}"),
        rows=rows,
        dead_letters=dead_letters,
        patience=patience,
        metrics=metrics,
        marker_ttl_s=config.redis.delete_marker_ttl_s,
        donor=donor,
    )
    return Assembly(settings, version, client, builder, chunk, writer, projector)


@dataclass(frozen=True)
class Projection(Assembly):
    """Everything between a table and one version of its index.

    Attributes:
        versions: the registry of the pipeline.
    """

    config: Config
    source: PostgresSource
    versions: Versions
    reader: PostgresReader
    table: TableSchema
    rows: TableRows
    embedder: Embedder
    space: EmbeddingSpace
    lane: SlowLane
    patience: Patience


@dataclass(frozen=True)
class EventProjection(Assembly):
    """Everything between an event and one version of its index: the event is the row, its place the version."""

    decoder: EventDecoder
    lane: SlowLane


@dataclass(frozen=True)
class _Opened:
    """What a table and a topic of events have in common, once it is connected."""

    client: Client
    versions: Versions
    registry: VersionTable
    version: IndexVersion
    embedder: Embedder
    space: EmbeddingSpace


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
    """Connect to the parts of a pipeline that mirrors a table.

    Args:
        pipeline: as the configuration has it.
        patience: how long a part that is away is waited for.
        dead_letters: where refused rows go.
        version: of the index; None: the one that readers see.
        share: of the embedder, among all projections of a process; None: this is the only one.

    Raises:
        ConfigError: the pipeline mirrors no table, has no such index version, the model is not that version's, or
            the source is another database than the one that the index was written from.
        FailureClass: a part failed.
    """
    source = config.source(pipeline.source)
    if not isinstance(source, PostgresSource):
        raise ConfigError(
            f"pipeline {pipeline.name!r} mirrors a topic of events: there is no table to read its rows from"
        )
    async with AsyncExitStack() as stack:
        parts = await _connected(stack, config, pipeline, version, patience)
        reader = PostgresReader(source)
        stack.push_async_callback(reader.close)
        await patience.call(reader.part, check_same_source, parts.client, reader, source)
        table = await patience.call(reader.part, reader.schema, pipeline.table)
        settings = parts.version.pipeline(pipeline)
        columns = document_builder(settings, parts.version).columns
        check_columns(settings, table, columns)
        rows = TableRows(reader, table, columns, source.reread_rows_max)
        commands_max = config.redis.pipeline_commands_max
        assembly = assemble(
            config,
            pipeline,
            parts.version,
            client=parts.client,
            embedder=parts.embedder,
            rows=rows,
            dead_letters=dead_letters,
            patience=patience,
            metrics=metrics.pipeline(pipeline.name, seen=False),
            donor=donor(parts.client, pipeline.name, parts.registry, parts.version, commands_max),
        )
        yield Projection(
            **vars(assembly),
            config=config,
            source=source,
            versions=parts.versions,
            reader=reader,
            table=table,
            rows=rows,
            embedder=parts.embedder,
            space=parts.space,
            lane=_lane(config, assembly, share),
            patience=patience,
        )


@asynccontextmanager
async def opened_events(
    config: Config,
    pipeline: Pipeline,
    *,
    patience: Patience,
    metrics: Metrics,
    dead_letters: DeadLetters,
    version: int | None = None,
    share: EmbedderShare | None = None,
) -> AsyncIterator[EventProjection]:
    """Connect to the parts of a pipeline that mirrors a topic of events; see `opened`.

    Raises:
        ConfigError: there is no such index version, or the model is not that version's.
        FailureClass: a part failed.
    """
    async with AsyncExitStack() as stack:
        parts = await _connected(stack, config, pipeline, version, patience)
        assembly = assemble(
            config,
            pipeline,
            parts.version,
            client=parts.client,
            embedder=parts.embedder,
            rows=None,
            dead_letters=dead_letters,
            patience=patience,
            metrics=metrics.pipeline(pipeline.name, seen=False),
        )
        decoder = EventDecoder(config.topic(pipeline), assembly.builder.columns)
        yield EventProjection(**vars(assembly), decoder=decoder, lane=_lane(config, assembly, share))


async def _connected(
    stack: AsyncExitStack, config: Config, pipeline: Pipeline, version: int | None, patience: Patience
) -> _Opened:
    client = await stack.enter_async_context(aclosing(connect(config.redis)))
    versions = Versions(client, pipeline.name)
    registry = await patience.call("redis", versions.known)
    made_with = registry.version(version)
    embedder = make_embedder(made_with.embedding(config.embedding))
    stack.push_async_callback(embedder.close)
    space = await patience.call(f"embedder {made_with.model}", embedder.start)
    made_with.check_space(space, pipeline.name)
    return _Opened(client, versions, registry, made_with, embedder, space)


def _lane(config: Config, assembly: Assembly, share: EmbedderShare | None) -> SlowLane:
    share = share or EmbedderShare(config.slow_lane)
    return SlowLane(assembly.projector, assembly.builder, assembly.client, share)


def document_builder(pipeline: Pipeline, version: IndexVersion) -> DocumentBuilder:
    """Return what renders the rows of a pipeline for an index version."""
    fields = [Field(field.column, field.field, field.type) for field in pipeline.metadata]
    return DocumentBuilder(pipeline.text, fields, version.space(), pipeline.text_bytes_max)


def check_columns(pipeline: Pipeline, table: TableSchema, columns: Sequence[str]) -> None:
    """Raise ConfigError where the table lacks a column that the pipeline needs, or a primary key."""
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

"""One pipeline's projection into one of its index versions, opened by a process that is not the daemon.

Workflow activities, checks and repairs read the table, render, embed and write as the daemon does, under the same
version rule, through the slow lane.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from daemon.core.document import DocumentBuilder
from daemon.embedding.batches import EmbeddingBatches
from daemon.embedding.embedder import Embedder, EmbeddingSpace
from daemon.embedding.factory import make_embedder
from daemon.embedding.tokenizer import Chunker
from daemon.errors import ConfigError
from daemon.index import schema
from daemon.index.connection import Client, connect
from daemon.index.donor import donor
from daemon.index.layout import Layout
from daemon.index.versions import IndexVersion, Versions, VersionTable
from daemon.index.writer import IndexWriter, load_functions
from daemon.mirror import TableRows, check_columns, document_builder
from daemon.patience import Patience
from daemon.pipeline import DeadLetters, Projector
from daemon.settings import Config, Pipeline, PostgresSource
from daemon.slow_lane import EmbedderShare, SlowLane
from daemon.source.postgres import PostgresReader, TableSchema
from daemon.telemetry.metrics import Metrics


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

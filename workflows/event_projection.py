"""A pipeline of events opened beside the daemon: what decodes an event, and one version of the index it goes to.

There is no table to read a row from: the event is the row, and its place in the topic the version.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from daemon.embedding.batches import EmbeddingBatches
from daemon.embedding.chunking import Chunker
from daemon.embedding.embedder import Embedder
from daemon.embedding.factory import make_embedder
from daemon.index import schema
from daemon.index.connection import Client, connect
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion, Versions
from daemon.index.writer import IndexWriter, load_functions
from daemon.patience import Patience
from daemon.projection.build import document_builder
from daemon.projection.projector import DeadLetters, Projector
from daemon.projection.slow_lane import EmbedderShare, SlowLane
from daemon.settings import Config, Pipeline
from daemon.source.events import EventDecoder
from daemon.telemetry.metrics import Metrics


@dataclass(frozen=True)
class EventProjection:
    """Everything between an event and one version of its index; `pipeline` has that version's settings."""

    pipeline: Pipeline
    version: IndexVersion
    client: Client
    decoder: EventDecoder
    writer: IndexWriter
    lane: SlowLane

    async def ensure_index(self) -> None:
        """Load the functions and make the index, if Redis lost them."""
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
    version: int,
    share: EmbedderShare,
) -> AsyncIterator[EventProjection]:
    """Connect to the parts: see `daemon.projection.build.opened`.

    Raises:
        ConfigError: there is no such index version, or the model is not that version's.
        FailureClass: a part failed.
    """
    client = connect(config.redis)
    embedder: Embedder | None = None
    try:
        registry = await patience.call("redis", Versions(client, pipeline.name).known)
        made = registry.version(version)
        embedder = make_embedder(made.embedding(config.embedding))
        made.check_space(await patience.call("embedder", embedder.start), pipeline.name)
        settings = made.pipeline(pipeline)
        builder = document_builder(settings, made)
        writer = IndexWriter(client, Layout(pipeline.name, made.number), config.redis.pipeline_commands_max)
        projector = Projector(
            builder=builder,
            chunk=Chunker(settings.chunking),
            writer=writer,
            embedding=EmbeddingBatches(embedder, config.embedding.batch_texts_max, settings.index.type),
            rows=None,
            dead_letters=dead_letters,
            patience=patience,
            metrics=metrics.pipeline(pipeline.name, seen=False),
            marker_ttl_s=config.redis.delete_marker_ttl_s,
        )
        yield EventProjection(
            pipeline=settings,
            version=made,
            client=client,
            decoder=EventDecoder(config.topic(pipeline), builder.columns),
            writer=writer,
            lane=SlowLane(projector, builder, client, share),
        )
    finally:
        if embedder is not None:
            await embedder.close()
        await client.aclose()

"""Everything that a check or a repair of one pipeline needs, opened and closed."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from daemon.core.change import Outcome
from daemon.embedding.batches import EmbeddingBatches
from daemon.embedding.factory import make_embedder
from daemon.embedding.tokenizer import Chunker
from daemon.errors import ConfigError, RetryLater
from daemon.index import schema
from daemon.index.connection import Client, connect
from daemon.index.layout import Layout
from daemon.index.writer import IndexWriter, load_functions
from daemon.mirror import TableRows, document_builder
from daemon.patience import Patience
from daemon.pipeline import Projector
from daemon.settings import Config, Pipeline, PostgresSource
from daemon.source.postgres import PostgresReader
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from daemon.verify.checker import Checker, OnProgress, Subject
from daemon.verify.differences import Report
from daemon.verify.repair import NoRecords, Repaired, repair
from daemon.verify.stored import StoredDocuments

T = TypeVar("T")
PATIENCE_S = 30.0


class LimitedPatience(Patience):
    """Waits for a part that is away, but not for ever: somebody sits before the terminal."""

    async def call(self, part: str, work: Callable[[], Awaitable[T]]) -> T:
        ends_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await work()
            except RetryLater as error:
                if time.monotonic() > ends_at:
                    raise
                await self.pause(max(0.05, error.retry_after_s))


class Session:
    """One pipeline, opened for checking and repairing."""

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        client: Client,
        subject: Subject,
        writer: IndexWriter,
        embedding: EmbeddingBatches,
        metrics: Metrics,
        ensure_index: Callable[[], Awaitable[object]],
    ) -> None:
        self._pipeline = pipeline
        self._client = client
        self._subject = subject
        self._writer = writer
        self._metrics = metrics
        self._ensure_index = ensure_index
        self._checker: Checker | None = None
        self._projector = Projector(
            builder=subject.builder,
            chunk=subject.chunk,
            writer=writer,
            embedding=embedding,
            rows=subject.rows,
            dead_letters=NoRecords(),
            patience=subject.patience,
            metrics=metrics.pipeline(pipeline.name),
            marker_ttl_s=config.redis.delete_marker_ttl_s,
        )

    async def check(self, on_progress: OnProgress) -> Report:
        """See `Checker.check`."""
        self._checker = Checker(self._subject, on_progress)
        return await self._checker.check()

    async def reconcile_reasons(self) -> dict[str, float]:
        """Why a reconcile is due, and since when; empty: none is."""
        return await self._writer.reconcile_reasons()

    async def repair(
        self, found: Report, on_progress: OnProgress, on_wait: Callable[[str], None]
    ) -> Repaired:
        """See `repair.repair`; `found` is the report of the last check."""
        assert self._checker is not None, "a repair follows a check"
        await load_functions(self._client)
        await self._ensure_index()
        return await repair(
            self._subject,
            self._writer,
            self._projector,
            found,
            self._checker.surplus,
            self._count,
            on_progress,
            on_wait,
        )

    def _count(self, outcome: Outcome) -> int:
        labels = {"pipeline": self._pipeline.name, "outcome": outcome.value}
        return int(self._metrics.registry.get_sample_value("livevec_changes_total", labels) or 0)


@asynccontextmanager
async def opened(config: Config, pipeline: Pipeline, *, vectors: bool) -> AsyncIterator[Session]:
    """Connect to the parts; `vectors`: also recompute embeddings.

    Raises:
        ConfigError: the pipeline mirrors no table.
        FailureClass: a part failed.
    """
    source = config.source(pipeline.source)
    if not isinstance(source, PostgresSource):
        raise ConfigError(
            f"pipeline {pipeline.name!r} mirrors a topic of events: there is no table to compare it with"
        )
    metrics = Metrics()
    patience = LimitedPatience(config.retry, Health(metrics))
    client, embedder, reader = connect(config.redis), make_embedder(config.embedding), PostgresReader(source)
    try:
        space = await patience.call("embedder", embedder.start)
        table = await patience.call("source", lambda: reader.schema(pipeline.table))
        builder = document_builder(pipeline, space)
        layout = Layout(pipeline.name, schema.FIRST_VERSION)
        writer = IndexWriter(client, layout, config.redis.pipeline_commands_max)
        texts_max = config.embedding.batch_texts_max
        subject = Subject(
            pipeline=pipeline.name,
            reader=reader,
            table=table,
            rows=TableRows(reader, table, builder.columns, source.reread_rows_max),
            builder=builder,
            chunk=Chunker(pipeline.chunking),
            stored=StoredDocuments(client, writer),
            embedding=EmbeddingBatches(embedder, texts_max, "FLOAT32") if vectors else None,
            patience=patience,
            vector_type=pipeline.index.type,
            dimension=space.dimension,
        )
        embedding = EmbeddingBatches(embedder, texts_max, pipeline.index.type)
        yield Session(
            config,
            pipeline,
            client,
            subject,
            writer,
            embedding,
            metrics,
            lambda: schema.ensure(client, pipeline, space),
        )
    finally:
        await reader.close()
        await embedder.close()
        await client.aclose()

"""A check or a repair of one pipeline, opened and closed."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from daemon.core.change import Outcome
from daemon.embedding.batches import EmbeddingBatches
from daemon.patience import Patience
from daemon.projection.build import Projection
from daemon.projection.build import opened as projection_opened
from daemon.settings import Config, Pipeline
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from daemon.verify.checker import Checker, OnProgress, Subject
from daemon.verify.differences import Report
from daemon.verify.repair import NoRecords, Repaired, repair
from daemon.verify.stored import StoredDocuments

PATIENCE_S = 30.0
"""Somebody sits before the terminal."""


class Session:
    """One pipeline, opened for checking and repairing."""

    def __init__(self, projection: Projection, subject: Subject, metrics: Metrics) -> None:
        self._projection = projection
        self._subject = subject
        self._metrics = metrics
        self._checker: Checker | None = None

    async def check(self, on_progress: OnProgress) -> Report:
        """See `Checker.check`."""
        self._checker = Checker(self._subject, on_progress)
        return await self._checker.check()

    async def reconcile_reasons(self) -> dict[str, float]:
        """Why a reconcile is due, and since when; empty: none is."""
        return await self._projection.writer.reconcile_reasons()

    async def repair(
        self, found: Report, on_progress: OnProgress, on_wait: Callable[[str], None]
    ) -> Repaired:
        """See `repair.repair`; `found` is the report of the last check."""
        assert self._checker is not None, "a repair follows a check"
        await self._projection.ensure_index()
        return await repair(
            self._subject,
            self._projection.writer,
            self._projection.projector,
            found,
            self._checker.surplus,
            self._count,
            on_progress,
            on_wait,
        )

    def _count(self, outcome: Outcome) -> int:
        labels = {"pipeline": self._subject.pipeline, "outcome": outcome.value}
        return int(self._metrics.registry.get_sample_value("livevec_changes_total", labels) or 0)


@asynccontextmanager
async def opened(
    config: Config, pipeline: Pipeline, *, vectors: bool, version: int | None = None
) -> AsyncIterator[Session]:
    """Connect to the parts; `vectors`: also recompute embeddings.

    Raises:
        ConfigError: the pipeline mirrors no table, or has no such index version (None: the one readers see).
        FailureClass: a part failed.
    """
    metrics = Metrics()
    patience = Patience(config.retry, Health(metrics), PATIENCE_S)
    async with projection_opened(
        config, pipeline, patience=patience, metrics=metrics, dead_letters=NoRecords(), version=version
    ) as projection:
        yield Session(projection, subject_of(projection, vectors=vectors), metrics)


def subject_of(projection: Projection, *, vectors: bool) -> Subject:
    """What a checker needs of a projection."""
    texts_max = projection.config.embedding.batch_texts_max
    return Subject(
        pipeline=projection.pipeline.name,
        reader=projection.reader,
        table=projection.table,
        rows=projection.rows,
        builder=projection.builder,
        chunk=projection.chunk,
        stored=StoredDocuments(projection.client, projection.writer),
        embedding=EmbeddingBatches(projection.embedder, texts_max, "FLOAT32") if vectors else None,
        patience=projection.patience,
        vector_type=projection.pipeline.index.type,
        dimension=projection.space.dimension,
    )

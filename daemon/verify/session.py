"""A check or a repair of one pipeline in this process: by the examiner, with no Temporal."""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from daemon.core.work import Refusal
from daemon.errors import RejectRow
from daemon.index.durability import Durability
from daemon.patience import Patience
from daemon.projection.build import Projection
from daemon.projection.build import opened as projection_opened
from daemon.projection.slow_lane import EmbedderShare, live_changes_are_about
from daemon.settings import Config, Pipeline
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from daemon.verify.differences import Difference, Differences, IndexFindings, Tally, added
from daemon.verify.examiner import Examiner, KeysCheck, KeysChecked, Mender, RangeCheck, RangeChecked
from daemon.verify.pace import Interruption
from daemon.verify.refill import Copied, refill
from daemon.verify.sides import OnProgress, Sides

PATIENCE_S = 30.0
"""A part that is away for longer fails the command: a person waits for it."""
_LIVE_LAG_S = 10.0
"""While a daemon applies changes, a document may wait so long for its own; at rest, nothing is on its way."""


class NoRecords:
    """The dead letters of a repair: a row that was read from the table is still there, and waits in it."""

    async def put(self, refusal: Refusal, error: RejectRow) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        outcomes: of the rows: embedded, metadata, unchanged, superseded (a newer change was there), dead_lettered.
        swept: documents and markers older than the backfill's snapshot, removed.
        pruned: single chunks and foreign keys, removed.
        reasons: why a reconcile was due; dealt with now, by a full backfill.
    """

    outcomes: dict[str, int]
    swept: int
    pruned: int
    reasons: tuple[str, ...]


class Session:
    """One pipeline, opened for checking and repairing."""

    def __init__(self, projection: Projection, share: EmbedderShare, *, vectors: bool) -> None:
        self._projection = projection
        self._share = share
        self._sides = Sides(projection, vectors=vectors)

    async def check(self, on_progress: OnProgress) -> IndexFindings:
        """Compare all rows and all keys, once and where they differ again; raise FailureClass where a part failed."""
        differing: dict[str, frozenset[Difference]] = {}
        foreign_keys: set[str] = set()

        def settled(differences: Differences, foreign: Collection[str]) -> None:
            for identifier, shown in differences.items():
                differing[identifier] = differing.get(identifier, frozenset()) | shown
            foreign_keys.update(foreign)

        tally = await self._examined(None, on_progress, settled)
        return IndexFindings(
            pipeline=self._projection.pipeline.name,
            rows=tally.rows,
            documents=tally.documents,
            refused=tally.refused,
            differing=differing,
            foreign_keys=tuple(sorted(foreign_keys)),
        )

    async def reconcile_reasons(self) -> dict[str, float]:
        """Return why a reconcile is due, and since when; empty: none is."""
        return await self._projection.writer.reconcile_reasons()

    async def repair(
        self, on_progress: OnProgress, on_wait: Callable[[str], None], *, may_empty: bool = False
    ) -> Repaired:
        """Mend what differs, after a full backfill where one is due; live changes may be applied meanwhile.

        Args:
            on_wait: gets the transaction that has to end before the table is read.
            may_empty: also where that removes most of the index.

        Raises:
            FailureClass: a part failed; what was done is no harm, and a second repair goes on.
            StopPipeline: most of the index would be removed, or rows cannot be read.
        """
        projection = self._projection
        await projection.ensure_index()
        durability = await Durability.begin(projection.client, projection.config.redis)
        marks = await self.reconcile_reasons()
        copied, swept = Copied(), 0
        if marks:
            copied, swept = await refill(
                projection, durability, marks, on_progress, on_wait, may_empty=may_empty
            )
        mender = Mender(self._sides, projection.lane, durability, may_empty=may_empty)
        tally = await self._examined(mender, on_progress, lambda differing, foreign: None)
        return Repaired(added(copied.outcomes, tally.outcomes), swept, tally.pruned, tuple(sorted(marks)))

    async def _examined(
        self,
        mender: Mender | None,
        on_progress: OnProgress,
        on_settled: Callable[[Differences, Collection[str]], None],
    ) -> Tally:
        """Check the table as one range, then all keys."""
        sides = self._sides
        await sides.stored.built(lambda documents: on_progress("index", documents, None))
        total = await self._projection.reader.count_estimate(self._projection.table)
        seen = {"rows": 0, "documents": 0}

        def count(what: str, more: int) -> None:
            seen[what] += more
            on_progress(what, seen[what], max(total, seen[what]) if what == "rows" else None)

        examiner = Examiner(
            sides,
            self._share,
            Interruption(),
            whole=True,
            mender=mender,
            lag_s=_LIVE_LAG_S if await live_changes_are_about(self._projection.client) else 0.0,
            on_seen=count,
            on_settled=on_settled,
        )
        rows = await RangeCheck(RangeChecked(after=None)).run(examiner)
        keys = await KeysCheck(KeysChecked(position=None)).run(examiner)
        return rows.tally.plus(keys.tally)


@asynccontextmanager
async def opened(
    config: Config, pipeline: Pipeline, *, vectors: bool, version: int | None = None
) -> AsyncIterator[Session]:
    """Connect to the parts; `vectors`: also recompute embeddings.

    Raises:
        ConfigError: the pipeline mirrors no table, has no such index version (None: the one readers see), or the
            source is another database than the index was written from.
        FailureClass: a part failed.
    """
    metrics = Metrics()
    patience = Patience(config.retry, Health(metrics), PATIENCE_S)
    share = EmbedderShare(config.slow_lane)
    async with projection_opened(
        config,
        pipeline,
        patience=patience,
        metrics=metrics,
        dead_letters=NoRecords(),
        version=version,
        share=share,
    ) as projection:
        yield Session(projection, share, vectors=vectors)

"""The activities of a reconcile: plan it, check a key range, check the keys that Redis has, show what it came to."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from prometheus_client import CollectorRegistry, Gauge
from temporalio import activity

from daemon.verify.differences import Difference
from daemon.verify.examiner import Examiner, KeysCheck, KeysChecked, Mender, RangeCheck, RangeChecked
from daemon.verify.pace import Interruption
from daemon.verify.sides import Sides
from workflows.interruption import begun, heartbeating, interruptible
from workflows.progress import Beat
from workflows.reconcile.contract import Conclusion, KeysOrder, RangeOrder, ReconcilePlan, Subject
from workflows.resources import Resources

log = structlog.get_logger(__name__)
_RANGES_MAX = 256


class ReconcileMetrics:
    """What the last reconcile of each pipeline came to; in the worker that ended it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"livevec_reconcile_{name}", text, ["pipeline", *labels], registry=registry)

        text = "Documents that the last reconcile found different; outside a known gap, any is an alarm."
        self.differences = gauge("differences", text, "difference")
        text = "Documents that were still different when the last reconcile ended."
        self.left = gauge("left", text, "difference")
        self.ended_at = gauge("last_run_timestamp_seconds", "When the last reconcile ended.")
        self.duration = gauge("duration_seconds", "What it took.")

    def show(self, conclusion: Conclusion) -> None:
        pipeline, tally = conclusion.pipeline, conclusion.tally
        for kind in Difference:
            self.differences.labels(pipeline, kind.value).set(tally.found.get(kind.value, 0))
            self.left.labels(pipeline, kind.value).set(tally.left.get(kind.value, 0))
        self.ended_at.labels(pipeline).set(time.time())
        self.duration.labels(pipeline).set(conclusion.seconds)


class ReconcileActivities:
    """What a reconcile has done; all share the worker's resources."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._metrics = ReconcileMetrics(resources.metrics.registry)

    @activity.defn(name="reconcile_plan")
    async def plan(self, subject: Subject) -> ReconcilePlan:
        """Look at the table and the index as they are now.

        Raises:
            ConfigError: there is no such pipeline or index version, or the source is another database.
            StopPipeline: the table is not what it must be.
        """
        call = self._resources.patience.call
        async with self._resources.projection(subject.pipeline, subject.version, fresh=True) as projection:
            reader, table = projection.reader, projection.table
            if subject.repair:
                await call("redis", projection.ensure_index)
            async with heartbeating(lambda: ()):
                await Sides(projection, vectors=False).stored.built(lambda _: None)
            rows = await call(reader.part, reader.count_estimate, table)
            parts = min(_RANGES_MAX, rows // subject.rows_per_range)
            return ReconcilePlan(
                version=projection.version.number,
                bounds=tuple(await reader.key_ranges(table, parts)) if parts > 1 else (),
                rows=rows,
                reasons=tuple(sorted(await projection.writer.reconcile_reasons())),
            )

    @activity.defn(name="reconcile_range")
    async def check_range(self, order: RangeOrder) -> RangeChecked:
        """Check the rows of a range, and mend; another attempt goes on from the last heartbeat."""
        check = RangeCheck(begun(RangeChecked) or RangeChecked(after=order.after), order.until, order.rate)

        async def work(interruption: Interruption) -> RangeChecked:
            async with self._examiner(order.subject, interruption) as examiner:
                return await check.run(examiner)

        return await interruptible(work, lambda: (check.checked, Beat(done=check.checked.tally.rows)))

    @activity.defn(name="reconcile_keys")
    async def check_keys(self, order: KeysOrder) -> KeysChecked:
        """Check the keys that Redis has, and mend; another attempt goes on from the last heartbeat."""
        check = KeysCheck(begun(KeysChecked) or KeysChecked(position=order.position), order.rate)

        async def work(interruption: Interruption) -> KeysChecked:
            async with self._examiner(order.subject, interruption) as examiner:
                return await check.run(examiner)

        return await interruptible(work, lambda: (check.checked, Beat(done=0)))

    @activity.defn(name="reconcile_conclude")
    async def conclude(self, conclusion: Conclusion) -> None:
        """Show the result in the metrics; differences that nothing explains are an alarm."""
        self._metrics.show(conclusion)
        found, left = conclusion.tally.found, conclusion.tally.left
        bound, reasons = log.bind(pipeline=conclusion.pipeline, found=found), conclusion.reasons
        remedy = f"livevec reconcile {conclusion.pipeline} --repair"
        if reasons and not conclusion.repair:
            bound.warning("reconcile_is_due", reasons=reasons, remedy=remedy)
        elif left or (found and not reasons):
            if not left:
                remedy = "repaired; find out what wrote to Redis, or kept the change log from it, around the rows named"
            examples = conclusion.tally.examples
            bound.error("index_differed_from_its_table", left=left, examples=examples, remedy=remedy)

    @asynccontextmanager
    async def _examiner(self, subject: Subject, interruption: Interruption) -> AsyncIterator[Examiner]:
        resources = self._resources
        async with resources.projection(subject.pipeline, subject.version) as projection:
            sides = Sides(projection, vectors=subject.vectors)
            durability, lane = await resources.durability(projection), resources.lane(projection)
            yield Examiner(
                sides,
                resources.share,
                interruption,
                whole=subject.vectors,
                mender=Mender(sides, lane, durability) if subject.repair else None,
                lag_s=subject.lag_s,
            )

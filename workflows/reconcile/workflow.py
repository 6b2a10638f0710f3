"""Reconcile: compares a table with its index in both directions, shows what differs, and mends it.

Where a reconcile is due (Redis went back, records were lost, the table was changed past its log), documents mended
one by one are not enough, and a full backfill goes first. Records of before that moment may still be on their way to
the index: a check that finds a document right, or no document, does not keep such a record from being applied
afterwards, and the record that would undo it may be among the lost. Only the floor that a backfill puts refuses them,
and only reading every row afterwards makes it safe to put. Where nothing is due the log is whole: the last record of
every key will be applied, so what stays different is damage to single documents, which is mended where it is.
"""

import asyncio
from collections.abc import Iterator
from datetime import timedelta

from temporalio import workflow

from daemon.verify.differences import Tally
from daemon.verify.sides import Key
from workflows.backfill.contract import Target
from workflows.backfill.workflow import Backfill, BackfillOrder, BackfillResult
from workflows.control import Controlled
from workflows.progress import ENDED, Contract, estimated
from workflows.reconcile.activities import ReconcileActivities
from workflows.reconcile.contract import KeysOrder, RangeOrder, Reconciled, ReconcilePlan, Subject

PLANNING, BACKFILLING, CHECKING = "planning", "backfilling", "checking"
_TIMEOUT = timedelta(minutes=10)
_TIMEOUT_CHECK = timedelta(days=2)
_PARALLEL = 2


class ReconcileOrder(Contract):
    """What to reconcile.

    Attributes:
        rate: most rows a second.
        parallel: key ranges at once.
        told: show the result in metrics and log, as of the index that readers see.
    """

    subject: Subject
    rate: float | None = None
    parallel: int = _PARALLEL
    told: bool = True


def workflow_id(subject: Subject) -> str:
    """Return its id: one reconcile of an index version at a time, but for scheduled ones."""
    return f"reconcile-{subject.pipeline}" + (f"-v{subject.version}" if subject.version is not None else "")


@workflow.defn(name="Reconcile")
class Reconcile(Controlled):
    """Plan, backfill if one is due, then the key ranges and Redis' own keys side by side."""

    @workflow.init
    def __init__(self, order: ReconcileOrder) -> None:
        super().__init__()
        self.rate = order.rate
        self._subject = order.subject
        self._tally = Tally()
        self._rows = 0
        self._checking_since_s = 0.0
        self._phase = PLANNING
        self._places = asyncio.Semaphore(order.parallel)
        self._parallel = order.parallel

    @workflow.run
    async def run(self, order: ReconcileOrder) -> Reconciled:
        """Run the reconcile; see the module."""
        began_s = workflow.time()
        self._tell(PLANNING)
        plan = await self.step(ReconcileActivities.plan, self._subject, _TIMEOUT, "look at table and index")
        self._subject = self._subject.model_copy(update={"version": plan.version})
        self._rows = plan.rows
        backfilled = self._subject.repair and bool(plan.reasons) and await self._backfill(plan)
        await self._check(plan)
        result = Reconciled(
            pipeline=self._subject.pipeline,
            version=plan.version,
            repair=self._subject.repair,
            reasons=plan.reasons,
            backfilled=backfilled,
            seconds=round(workflow.time() - began_s, 3),
            tally=self._tally,
        )
        if order.told:
            await self.step(ReconcileActivities.conclude, result, _TIMEOUT, "metrics and log")
        self._tell(ENDED)
        return result

    async def _backfill(self, plan: ReconcilePlan) -> bool:
        """Return whether it dealt with the reasons, which it leaves where it could not read every row."""
        await self.unpaused()
        self._tell(BACKFILLING, f"because of {', '.join(plan.reasons)}")
        target = Target(pipeline=self._subject.pipeline, version=plan.version)
        done: BackfillResult = await self.child(
            Backfill.run,
            BackfillOrder(target=target, rate=self.rate),
            f"backfill-{target.pipeline}-for-reconcile-{workflow.uuid4().hex[:8]}",
            f"backfill of {target.pipeline}, because of {', '.join(plan.reasons)}",
        )
        return done.swept is not None

    async def _check(self, plan: ReconcilePlan) -> None:
        self._checking_since_s = workflow.time()
        self._tell(CHECKING)
        work = [self._keys(), *(self._range(after, until) for after, until in _ranges(plan.bounds))]
        tasks = [asyncio.create_task(part) for part in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _range(self, after: Key | None, until: Key | None) -> None:
        """Check one key range, in as many activities as pauses and throttles make of it."""
        ended = False
        while not ended:
            async with self._places:
                await self.unpaused()
                order = RangeOrder(subject=self._subject, after=after, until=until, rate=self._share())
                checked = await self.slice(
                    ReconcileActivities.check_range, order, _TIMEOUT_CHECK, f"rows {_named(after, until)}"
                )
            if checked is not None:
                after, ended = checked.after, checked.ended
                self._add(checked.tally)
            self.check_cancelled()

    async def _keys(self) -> None:
        """Check all keys that Redis has; beside the ranges, since it is one long walk."""
        position, ended = None, False
        while not ended:
            await self.unpaused()
            order = KeysOrder(subject=self._subject, position=position, rate=self._share())
            checked = await self.slice(
                ReconcileActivities.check_keys, order, _TIMEOUT_CHECK, "keys in Redis without a row"
            )
            if checked is not None:
                position, ended = checked.position, checked.ended
                self._add(checked.tally)
            self.check_cancelled()

    def _share(self) -> float | None:
        return None if self.rate is None else self.rate / self._parallel

    def _add(self, tally: Tally) -> None:
        self._tally = self._tally.plus(tally)
        self._tell(self._phase)

    def _tell(self, phase: str, note: str = "") -> None:
        self._phase = phase
        tally = self._tally
        rate = None
        if phase == CHECKING and tally.rows and workflow.time() > self._checking_since_s:
            rate = tally.rows / (workflow.time() - self._checking_since_s)
        total = max(self._rows, tally.rows) or None
        self.show(
            estimated(phase, tally.rows, total, rate, note),
            documents_in_redis=tally.documents,
            rows_refused=tally.refused,
            **{f"found {name}": count for name, count in tally.found.items()},
            **{f"left {name}": count for name, count in tally.left.items() if self._subject.repair},
        )


def _ranges(bounds: tuple[Key, ...]) -> Iterator[tuple[Key | None, Key | None]]:
    return zip((None, *bounds), (*bounds, None), strict=True)


def _named(after: Key | None, until: Key | None) -> str:
    if after is None and until is None:
        return "of the whole table"
    begin = "from the first" if after is None else f"after {'/'.join(after)}"
    return begin + (" to the last" if until is None else f" up to {'/'.join(until)}")

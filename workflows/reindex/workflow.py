"""Reindex: another version of an index beside the one that readers see, filled, measured, and given to them at once.

Until the swap nothing of what readers see is touched; whatever ends a reindex before it removes the new version
again. From its registration until its removal every change of the log reaches a version, so that the new one is whole
after its backfill, and the old one stays whole through the grace period.
"""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError, is_cancelled_exception

from workflows.backfill.contract import Target
from workflows.backfill.workflow import Backfill, BackfillOrder, BackfillResult
from workflows.control import ended, unbroken
from workflows.progress import ENDED
from workflows.reconcile.contract import Reconciled, Subject
from workflows.reconcile.workflow import Reconcile, ReconcileOrder
from workflows.reindex.activities import ReindexActivities
from workflows.reindex.contract import (
    APPROVAL,
    BACKFILLING,
    CHECKING,
    GRACE,
    JOINING,
    PLANNING,
    REMOVING,
    SWAPPING,
    TIMEOUT,
    TIMEOUT_LONG,
    Activation,
    GapWatch,
    Gate,
    Pair,
    PlanOrder,
    Registering,
    Reindexed,
    ReindexOrder,
    ReindexPlan,
    VersionOf,
    WritersLook,
    workflow_id,
)
from workflows.reindex.control import ReindexControl
from workflows.reindex.gate import ReindexGateActivities

T = TypeVar("T")
_ROUNDS_MAX = 5
"""Backfills of one version, where the log went on lacking something."""


@workflow.defn(name="Reindex")
class Reindex(ReindexControl):
    """Plan, register, join, backfill, gate, approval, swap, grace period, removal of the other version."""

    @workflow.init
    def __init__(self, order: ReindexOrder) -> None:
        super().__init__(order)
        self._order = order
        self._pipeline = order.pipeline
        self._began_s = workflow.time()
        self._is_cancelled = False
        self._backfilled: BackfillResult | None = None

    @workflow.run
    async def run(self, order: ReindexOrder) -> Reindexed:
        """Run the reindex; see the module."""
        self.tell(PLANNING)
        plan_order = PlanOrder(pipeline=order.pipeline, changes=order.changes, force=order.force)
        plan = await self.step(ReindexActivities.plan, plan_order, TIMEOUT, "look whether it can be made")
        self.reach(old=plan.old)
        try:
            swapped = await self._unless_rejected(self._brought_in(plan))
        except BaseException as error:
            await self._take_back("cancelled" if is_cancelled_exception(error) else "it failed")
            raise
        if swapped:
            await self._grace(plan)
            replaced = self.new_number if self.reached.rolled_back else plan.old.number
            await self._remove(replaced, "readers do not see it any more")
        else:
            await self._take_back("rejected")
        self.tell(ENDED)
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._is_cancelled:
            raise asyncio.CancelledError
        done = self._backfilled
        outcome = "activated" if swapped else "rejected"
        return Reindexed(
            pipeline=self._pipeline,
            outcome="rolled_back" if self.reached.rolled_back else outcome,
            old=plan.old.number,
            new=self.reached.new,
            gate=self.reached.gate,
            rows=done.rows if done else 0,
            outcomes=done.outcomes if done else {},
            seconds=round(workflow.time() - self._began_s, 3),
        )

    # ---- before the swap

    async def _unless_rejected(self, work: Coroutine[Any, Any, bool]) -> bool:
        """Return whether the work came to its end; else it was rejected."""
        task = asyncio.create_task(work)
        try:
            await workflow.wait_condition(lambda: task.done() or self.rejected)
        except asyncio.CancelledError:
            self._is_cancelled = True
        if not task.done():
            task.cancel()
        try:
            return await task
        except BaseException as error:
            if self.rejected and not self._is_cancelled and is_cancelled_exception(error):
                return False
            raise

    async def _brought_in(self, plan: ReindexPlan) -> bool:
        """Bring the new version in; return when readers see it."""
        for number in plan.leftovers:
            await self._remove(number, f"version {number} is left from an earlier reindex")
        wanted = Registering(pipeline=self._pipeline, wanted=plan.wanted)
        self.reach(new=await unbroken(self.step(ReindexActivities.register, wanted, TIMEOUT, "register it")))
        if self._is_cancelled or self.rejected:
            raise asyncio.CancelledError
        for _ in range(_ROUNDS_MAX):
            await self._join()
            self.reach(gate=await self._watched(self._filled(plan)))
            gap = await self._approved() or await self._swapped(plan)
            if not gap:
                return True
            self.reach(gate=None, note=f"filled anew: the log lacked something meanwhile ({gap})")
        raise ApplicationError(
            f"after {_ROUNDS_MAX} backfills the log still lacked something; see the daemon's log, then begin again: "
            f"`livevec reindex {self._pipeline}`",
            non_retryable=True,
        )

    async def _join(self) -> None:
        """Wait until the changes of every partition are written to the new version."""
        missing: tuple[str, ...] = ()
        while True:
            await self.unpaused()
            self.reach(waiting_for=missing)
            self.tell(JOINING, _waiting(missing, "changes are not written to the new version yet"))
            look = WritersLook(pipeline=self._pipeline, number=self.new_number, seen=missing)
            joined = await self.slice(
                ReindexActivities.join, look, TIMEOUT_LONG, "partitions that have no writer"
            )
            self.check_cancelled()
            if joined is not None:
                missing, self.gaps = joined.missing, joined.gaps
                if not missing:
                    self.reach(waiting_for=())
                    return

    async def _filled(self, plan: ReindexPlan) -> Gate:
        """Backfill the new version, and return what is measured of it."""
        await self.unpaused()
        child = f"{workflow_id(self._pipeline)}-backfill"
        self.tell(BACKFILLING, f"see `livevec workflows follow {child}`")
        order = BackfillOrder(target=Target(pipeline=self._pipeline, version=self.new_number), rate=self.rate)
        summary = f"backfill of the new version, {self._pipeline}:{self.new_number}"
        done: BackfillResult = await self.child(Backfill.run, order, child, summary)
        self._backfilled = done
        if done.swept is None:
            raise ApplicationError(
                f"the new version could not be filled from every row: {done.note}", non_retryable=True
            )
        return await self._measured(plan)

    async def _measured(self, plan: ReindexPlan) -> Gate:
        await self.unpaused()
        child = f"{workflow_id(self._pipeline)}-check"
        self.tell(CHECKING, f"every row against its document; see `livevec workflows follow {child}`")
        subject = Subject(pipeline=self._pipeline, version=self.new_number)
        order = ReconcileOrder(subject=subject, rate=self.rate, told=False)
        summary = f"check of the new version, {self._pipeline}:{self.new_number}"
        checked: Reconciled = await self.child(Reconcile.run, order, child, summary)
        pair = Pair(pipeline=self._pipeline, old=plan.old.number, new=self.new_number)
        self.tell(CHECKING, "each document's last change in both versions")
        behind = await self.step(ReindexGateActivities.behind, pair, TIMEOUT_LONG, "versions of documents")
        self.tell(CHECKING, "recall, and the answers of both versions")
        quality = await self.step(
            ReindexGateActivities.quality, pair, TIMEOUT_LONG, "recall against exact search"
        )
        return Gate(
            rows=checked.tally.rows,
            documents=checked.tally.documents,
            differences=checked.tally.found,
            examples=checked.tally.examples,
            behind=behind.behind,
            quality=quality,
            recall_min=plan.recall_min,
        )

    async def _approved(self) -> str:
        """Return when it is approved; or, where the version is not known to be whole any more, why."""
        gate = self.reached.gate
        assert gate is not None
        if self._order.auto and gate.passed:
            return ""
        self.approval = None
        failing = f"the gate fails: {'; '.join(gate.failures)}" if gate.failures else ""
        self.tell(APPROVAL, failing or "`livevec reindex approve` or `livevec reindex reject`")
        watching = asyncio.create_task(self._watch(self.gaps))
        try:
            await workflow.wait_condition(lambda: watching.done() or self.approval is not None)
        finally:
            gap: str | None = await ended(watching)
        return gap or ""

    async def _swapped(self, plan: ReindexPlan) -> str:
        """Give it to readers; return as `_approved` does."""
        self.tell(SWAPPING)
        order = Activation(
            pipeline=self._pipeline, number=self.new_number, instead_of=plan.old.number, gaps=self.gaps
        )
        done = await unbroken(self.step(ReindexActivities.activate, order, TIMEOUT, "give it to readers"))
        if not done.gap:
            self.gaps = done.gaps
            grace_s = plan.grace_s if self._order.grace_s is None else self._order.grace_s
            self.reach(grace_until_s=workflow.time() + max(grace_s, plan.last_readers_s))
            self.tell(GRACE)
        return done.gap

    async def _take_back(self, why: str) -> None:
        """Remove the new version, if it was registered; readers never saw it."""
        if self.reached.new is not None:
            await self._remove(self.reached.new.number, why)

    # ---- after it

    async def _grace(self, plan: ReindexPlan) -> None:
        """Wait while both versions are written and a person may roll back. Cancelled: it ends now."""
        until_s = self.reached.grace_until_s
        assert until_s is not None
        try:
            if not self._is_cancelled:
                await workflow.wait_condition(
                    lambda: not self.rolling_back and (self.reached.rolled_back or self.finishing),
                    timeout=timedelta(seconds=max(0.0, until_s - workflow.time())),
                )
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self._is_cancelled = True
        await workflow.wait_condition(lambda: not self.rolling_back)
        early = self.reached.rolled_back or self.finishing or self._is_cancelled
        self.tell(REMOVING)
        if early:
            await workflow.sleep(timedelta(seconds=plan.last_readers_s))

    async def _remove(self, number: int, why: str) -> None:
        """Let the daemons leave a version, then remove it."""
        writing: tuple[str, ...] = ()
        while True:
            self.reach(waiting_for=writing)
            waiting = _waiting(writing, "changes may still be written to it")
            self.tell(REMOVING, f"version {number}: {why}" + (f"; {waiting}" if waiting else ""))
            look = WritersLook(pipeline=self._pipeline, number=number, seen=writing)
            left = await self.step(
                ReindexActivities.leave, look, TIMEOUT_LONG, f"daemons leave version {number}"
            )
            writing = left.writing
            if not writing:
                break
        self.reach(waiting_for=())
        version = VersionOf(pipeline=self._pipeline, number=number)
        await self.step(ReindexActivities.drop, version, TIMEOUT_LONG, f"remove version {number}")

    # ---- ways of waiting

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result, unless the daemons give the new version up: then raise that failure."""
        doing, watching = asyncio.create_task(work), asyncio.create_task(self._watch(None))
        try:
            await workflow.wait_condition(lambda: doing.done() or watching.done())
            if not doing.done():
                await watching
            return await doing
        finally:
            await ended(watching)
            await ended(doing)

    async def _watch(self, gaps: dict[str, str] | None) -> str:
        """Return what the log lacks since `gaps`; raise where no daemon can write to the new version any more."""
        watch = GapWatch(pipeline=self._pipeline, number=self.new_number, gaps=gaps)
        while True:
            seen = await self.step(
                ReindexActivities.watch, watch, TIMEOUT_LONG, "whether the daemons go on writing it"
            )
            if seen.gap:
                return seen.gap


def _waiting(partitions: tuple[str, ...], what: str) -> str:
    return f"{', '.join(partitions)}: {what}; is `livevec run` started?" if partitions else ""

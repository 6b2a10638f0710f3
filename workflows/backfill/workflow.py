"""Backfill: reads a table from its primary and brings an index version up to date with it, under the version rule."""

import asyncio
from collections import Counter
from datetime import timedelta

from pydantic import Field
from temporalio import workflow

from daemon.verify.refill import Copied
from daemon.verify.sides import Key
from workflows.backfill.activities import LOOKING_S, BackfillActivities
from workflows.backfill.contract import BackfillPlan, BarrierLook, Closing, CopyOrder, Target
from workflows.control import Controlled
from workflows.progress import ENDED, Contract, estimated

PLANNING, WAITING, COPYING, SWEEPING = "planning", "waiting", "copying", "sweeping"
_ROWS_PER_READ_FIRST = 256
_TIMEOUT = timedelta(minutes=10)
_TIMEOUT_SWEEP = timedelta(days=1)
_BLOCKING_SHOWN = 5


class BackfillState(Contract):
    """Where a backfill is, from one run to the next.

    Attributes:
        begun, snapshot: of the barrier.
        range: number of the key range that is copied.
        after: key up to which it is.
        moved: whether any row was copied yet: then `after` itself was.
        skipped: ranges of which a part could not be read.
    """

    plan: BackfillPlan | None = None
    begun: int | None = None
    snapshot: str | None = None
    range: int = 0
    after: Key | None = None
    moved: bool = False
    rows: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict)
    unreadable: int = 0
    skipped: int = 0
    rows_per_read: int = _ROWS_PER_READ_FIRST
    rate: float | None = None
    paused: bool = False
    note: str = ""


class BackfillOrder(Contract):
    """What to backfill.

    Attributes:
        rate: most rows a second.
        slice_s: how long one activity copies rows.
        slices_per_run: then it is continued as new: a long history is slow to replay, and Temporal ends one of
            50,000 events.
        state: set by an earlier run of the same backfill.
    """

    target: Target
    rate: float | None = None
    slice_s: float = 30.0
    slices_per_run: int = 200
    state: BackfillState | None = None


class BackfillResult(Contract):
    """What a backfill did.

    Attributes:
        outcomes: of the rows: embedded, metadata, unchanged, superseded (a newer change was there), dead_lettered.
        swept: orphans and old markers removed; None: it was not a full backfill, or rows could not be read.
        unreadable: rows that could not be read; in the dead letters.
        reasons: why a reconcile had been due; dealt with now.
    """

    pipeline: str
    version: int
    rows: int
    outcomes: dict[str, int]
    swept: int | None
    unreadable: int
    reasons: tuple[str, ...]
    note: str


def workflow_id(target: Target) -> str:
    """Return its id: one backfill of an index version at a time."""
    return f"backfill-{target.pipeline}" + (f"-v{target.version}" if target.version is not None else "")


@workflow.defn(name="Backfill")
class Backfill(Controlled):
    """Barrier, key ranges, floor, sweep. Each slice of rows is one activity, which goes on from its heartbeats."""

    @workflow.init
    def __init__(self, order: BackfillOrder) -> None:
        super().__init__()
        self._order = order
        self._target = order.target
        self._state = order.state or BackfillState(rate=order.rate)
        self._rate_shown: float | None = None
        self._slices = 0
        self.rate = self._state.rate
        self.is_paused = self._state.paused

    @workflow.run
    async def run(self, order: BackfillOrder) -> BackfillResult:
        """Run the backfill; see the module."""
        try:
            plan = self._state.plan or await self._plan()
            if self._state.snapshot is None:
                await self._barrier(plan)
            await self._copy(plan)
            return await self._close(plan)
        except asyncio.CancelledError:
            self._tell("cancelled", f"go on with `--from {'/'.join(self._state.after or ()) or 'KEY'}`")
            raise

    async def _plan(self) -> BackfillPlan:
        self._tell(PLANNING)
        plan = await self.step(BackfillActivities.plan, self._target, _TIMEOUT, "look at table and index")
        self._update(plan=plan, after=plan.first, note=plan.note)
        return plan

    async def _barrier(self, plan: BackfillPlan) -> None:
        """Wait until every transaction that ran at the start has ended; shows which ones have not."""
        seen: tuple[str, ...] = ()
        while True:
            self._tell(WAITING, _waiting(seen) if self._state.begun is not None else "")
            await self.unpaused()
            look = BarrierLook(
                pipeline=self._target.pipeline, version=plan.version, begun=self._state.begun, seen=seen
            )
            limit = timedelta(seconds=LOOKING_S) + _TIMEOUT
            reply = await self.slice(BackfillActivities.barrier, look, limit, "transactions that still run")
            if reply is not None:
                self._update(begun=reply.begun, snapshot=reply.snapshot)
                seen = reply.blocking
            self.check_cancelled()
            if reply is not None and reply.snapshot is not None:
                return
            self._continue_if_long()

    async def _copy(self, plan: BackfillPlan) -> None:
        while self._state.range <= len(plan.bounds):
            self._tell(COPYING)
            await self.unpaused()
            state = self._state
            until = plan.bounds[state.range] if state.range < len(plan.bounds) else None
            order = CopyOrder(
                pipeline=self._target.pipeline,
                version=plan.version,
                table=plan.table,
                where=self._target.where,
                after=state.after,
                inclusive=plan.first is not None and not state.moved,
                until=until,
                rate=self.rate,
                rows_per_read=state.rows_per_read,
                limit_s=self._order.slice_s,
            )
            copied = await self.slice(BackfillActivities.copy, order, _TIMEOUT, f"rows {state.rows:,} and on")
            if copied is not None:
                self._add(copied, until)
            self.check_cancelled()
            self._continue_if_long()

    def _add(self, copied: Copied, until: Key | None) -> None:
        state = self._state
        self._rate_shown = copied.rate_per_s
        self._update(
            after=until if copied.ended else copied.after,
            moved=state.moved or copied.ended or copied.rows > 0,
            range=state.range + copied.ended,
            rows=state.rows + copied.rows,
            outcomes=dict(Counter(state.outcomes) + Counter(copied.outcomes)),
            unreadable=state.unreadable + copied.unreadable,
            skipped=state.skipped + copied.skipped,
            rows_per_read=copied.rows_per_read,
            note=copied.note or state.note,
        )

    async def _close(self, plan: BackfillPlan) -> BackfillResult:
        state = self._state
        swept, note = None, state.note
        if self._target.full and not state.unreadable and not state.skipped:
            self._tell(SWEEPING)
            await self.unpaused()
            assert state.snapshot is not None
            closing = Closing(
                pipeline=self._target.pipeline,
                version=plan.version,
                snapshot=state.snapshot,
                reasons=plan.reasons,
                marks=plan.marks,
            )
            done = await self.step(BackfillActivities.close, closing, _TIMEOUT_SWEEP, "remove orphans")
            swept = done.removed
        elif self._target.full:
            note = (
                f"{state.unreadable} rows could not be read (see the dead letters), so orphans were left: correct "
                "the rows and start the backfill again"
            )
        self._tell(ENDED, note)
        return BackfillResult(
            pipeline=self._target.pipeline,
            version=plan.version,
            rows=state.rows,
            outcomes=state.outcomes,
            swept=swept,
            unreadable=state.unreadable,
            reasons=plan.reasons if swept is not None else (),
            note=note,
        )

    def _continue_if_long(self) -> None:
        self._slices += 1
        if self._slices < self._order.slices_per_run and not workflow.info().is_continue_as_new_suggested():
            return
        state = self._state.model_copy(update={"rate": self.rate, "paused": self.is_paused})
        workflow.continue_as_new(self._order.model_copy(update={"state": state}))

    def _update(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)

    def _tell(self, phase: str, note: str = "") -> None:
        state = self._state
        total = max(state.plan.total, state.rows) if state.plan else None
        rate = self._rate_shown if phase == COPYING else None
        self.show(
            estimated(phase, state.rows, total, rate, note or state.note),
            throttled_to=f"{self.rate:g} rows a second" if self.rate else None,
            up_to_key="/".join(state.after) if state.after else None,
            unreadable_rows=state.unreadable,
            **dict(state.outcomes),
        )


def _waiting(blocking: tuple[str, ...]) -> str:
    if not blocking:
        return "waits for transactions to end that began before it"
    shown = "; ".join(blocking[:_BLOCKING_SHOWN])
    more = f" and {len(blocking) - _BLOCKING_SHOWN} more" if len(blocking) > _BLOCKING_SHOWN else ""
    return f"waits until these end: {shown}{more}"

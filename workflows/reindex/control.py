"""What one asks and tells a reindex while it runs: its status, approval, rejection, rollback."""

from datetime import UTC, datetime

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from daemon.index.registry import IndexVersion
from workflows.control import Controlled
from workflows.progress import ENDED, Progress, duration
from workflows.reindex.activities import ReindexActivities
from workflows.reindex.contract import (
    APPROVAL,
    GRACE,
    PLANNING,
    SWAPPING,
    TIMEOUT,
    Activation,
    Approval,
    ReindexOrder,
    ReindexStatus,
    Rollback,
    VersionOf,
)
from workflows.reindex.gate import ReindexGateActivities

_FORCE = "--force rolls back all the same, then `livevec reconcile --repair`"


class ReindexControl(Controlled):
    """Base of the workflow: what was decided, and where it is."""

    def __init__(self, order: ReindexOrder) -> None:
        super().__init__()
        self.rate = order.rate
        self.reached = ReindexStatus(pipeline=order.pipeline, phase=PLANNING, auto=order.auto)
        self.approval: Approval | None = None
        self.rejected = False
        self.finishing = False
        self.rolling_back = False
        self.gaps: dict[str, str] = {}
        """What the log lacked when both versions were last known to be whole, by reason: when it came up."""

    # ---- what one tells and asks

    @workflow.query(description="Versions, gate, what is waited for.")
    def status(self) -> ReindexStatus:
        return self.reached

    @workflow.update(description="Give the new version to readers; answers when they see it.")
    async def approve(self, approval: Approval) -> ReindexStatus:
        self.approval = approval
        await workflow.wait_condition(lambda: self.reached.phase not in (APPROVAL, SWAPPING))
        return self.reached

    @approve.validator
    def _may_be_approved(self, approval: Approval) -> None:
        gate = self.reached.gate
        if self.reached.phase != APPROVAL or gate is None or self.approval is not None:
            raise ApplicationError(f"there is nothing to approve now: it is {self.reached.phase}")
        if not gate.passed and not approval.force:
            raise ApplicationError(
                f"the gate fails: {'; '.join(gate.failures)}; --force approves all the same"
            )

    @workflow.update(description="Give the new version up, and remove it.")
    def reject(self) -> ReindexStatus:
        self.rejected = True
        return self.reached

    @reject.validator
    def _may_be_rejected(self) -> None:
        phase = self.reached.phase
        if phase in (SWAPPING, ENDED) or self.reached.grace_until_s is not None:
            remedy = "`livevec reindex rollback` gives readers the old version"
            raise ApplicationError(f"it is too late for that ({phase}): {remedy}")
        if self.rejected:
            raise ApplicationError("it is rejected already")

    @workflow.update(description="Give readers the old version again; answers when they see it.")
    async def rollback(self, rollback: Rollback) -> ReindexStatus:
        old, new = self.reached.old, self.reached.new
        assert old is not None
        assert new is not None
        self.rolling_back = True
        try:
            if not rollback.force:
                version = VersionOf(pipeline=self.reached.pipeline, number=old.number)
                parity = await self.step(
                    ReindexGateActivities.short_parity, version, TIMEOUT, "some rows against the old version"
                )
                if parity.differing:
                    raise ApplicationError(
                        f"of {parity.rows:,} rows that were looked at, the old version differs: {parity.differing}; "
                        f"{_FORCE}"
                    )
            order = Activation(
                pipeline=self.reached.pipeline,
                number=old.number,
                instead_of=new.number,
                gaps=None if rollback.force else self.gaps,
            )
            done = await self.step(ReindexActivities.activate, order, TIMEOUT, "give readers the old one")
            if done.gap:
                raise ApplicationError(
                    f"the old version may lack changes: since the swap the log lacked something ({done.gap}); {_FORCE}"
                )
            self.reach(rolled_back=True)
        finally:
            self.rolling_back = False
        return self.reached

    @rollback.validator
    def _may_be_rolled_back(self, rollback: Rollback) -> None:
        if self.reached.phase != GRACE or self.rolling_back or self.reached.rolled_back:
            raise ApplicationError(f"there is nothing to roll back to now: it is {self.reached.phase}")

    @workflow.update(description="End the grace period now: the old version is removed.")
    def finish(self) -> ReindexStatus:
        self.finishing = True
        return self.reached

    @finish.validator
    def _may_be_finished(self) -> None:
        if self.reached.phase != GRACE:
            raise ApplicationError(f"there is no grace period to end: it is {self.reached.phase}")

    # ---- what the workflow uses

    @property
    def new_number(self) -> int:
        new = self.reached.new
        assert new is not None
        return new.number

    def reach(self, **changes: object) -> None:
        self.reached = self.reached.model_copy(update=changes)

    def tell(self, phase: str, note: str = "") -> None:
        self.reach(phase=phase)
        status = self.reached
        gate, until_s = status.gate, status.grace_until_s
        facts: dict[str, object] = {
            "old_version": status.old and _named(status.old),
            "new_version": status.new and _named(status.new),
            "round": status.note,
        }
        if until_s is not None and not status.rolled_back:
            facts["roll_back_until"] = f"{datetime.fromtimestamp(until_s, UTC):%Y-%m-%d %H:%M} UTC"
        if gate is not None:
            facts["rows_compared"] = f"{gate.rows:,}, {sum(gate.differences.values()):,} differ"
            facts["recall"] = gate.quality.recall
            facts["overlap_of_answers"] = gate.quality.overlap
        if phase == GRACE and until_s is not None:
            note = note or f"`livevec reindex rollback` for {duration(max(0.0, until_s - workflow.time()))}"
        self.show(Progress(phase=phase, note=note), **facts)


def _named(version: IndexVersion) -> str:
    return f"{version.number} ({version.model}, {version.dimension}, m {version.m}, {version.type})"

"""What a reindex decides over days, its time skipped; what it would do is done by a small fake."""

# temporalio types the answer of an awaited update as a coroutine.
# mypy: disable-error-code="unused-coroutine"

import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import TimeSkippingConfig, WorkflowEnvironment
from temporalio.worker import Worker

from daemon.errors import ConfigError, RetryLater
from daemon.index.registry import IndexVersion
from daemon.verify.differences import Tally
from workflows import search_attributes
from workflows.backfill.workflow import BackfillOrder, BackfillResult
from workflows.client import reason
from workflows.failures import application_error
from workflows.reconcile.contract import Reconciled
from workflows.reconcile.workflow import ReconcileOrder
from workflows.registry import sandbox
from workflows.reindex.contract import (
    APPROVAL,
    GRACE,
    Activated,
    Activation,
    Approval,
    Behind,
    Changes,
    Dropped,
    GapWatch,
    Joined,
    Left,
    Pair,
    PlanOrder,
    Quality,
    Registering,
    Reindexed,
    ReindexOrder,
    ReindexPlan,
    ReindexStatus,
    Rollback,
    ShortParity,
    VersionOf,
    Watched,
    WritersLook,
)
from workflows.reindex.workflow import Reindex

DAY_S = 24 * 3600.0
OLD = IndexVersion(
    number=1,
    model="m",
    fingerprint="f",
    dimension=3,
    text="{a}",
    chunking=(0, 0),
    metadata=(),
    m=16,
    ef_construction=128,
    metric="cosine",
    type="FLOAT32",
)
NEW = replace(OLD, number=2, m=32)


@workflow.defn(name="Backfill", sandboxed=False)
class Filled:
    @workflow.run
    async def run(self, order: BackfillOrder) -> BackfillResult:
        return BackfillResult(
            pipeline="p",
            version=2,
            rows=5,
            outcomes={"embedded": 5},
            swept=0,
            unreadable=0,
            reasons=(),
            note="",
        )


@workflow.defn(name="Reconcile", sandboxed=False)
class Checked:
    @workflow.run
    async def run(self, order: ReconcileOrder) -> Reconciled:
        return Reconciled(
            pipeline="p",
            version=2,
            repair=False,
            reasons=(),
            backfilled=False,
            seconds=1.0,
            tally=Tally(rows=5, documents=5),
        )


class ScriptedRegistry:
    """Stands where the activities do; `done` is what they were asked for."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.recall = 1.0
        self.gaps: list[str] = []
        self.differing: dict[str, int] = {}
        self.failure = ""

    @activity.defn(name="reindex_plan")
    async def plan(self, order: PlanOrder) -> ReindexPlan:
        return ReindexPlan(
            old=OLD,
            wanted=replace(NEW, number=0),
            differences=("m",),
            leftovers=(),
            recall_min=0.9,
            grace_s=30 * DAY_S,
            last_readers_s=10.0,
        )

    @activity.defn(name="reindex_register")
    async def register(self, order: Registering) -> IndexVersion:
        self.done.append("register")
        return NEW

    @activity.defn(name="reindex_join")
    async def join(self, look: WritersLook) -> Joined:
        return Joined(missing=())

    @activity.defn(name="reindex_behind")
    async def behind(self, pair: Pair) -> Behind:
        return Behind(documents=5)

    @activity.defn(name="reindex_quality")
    async def quality(self, pair: Pair) -> Quality:
        self.done.append("measure")
        return Quality(recall=self.recall, queries=5, vectors=5, overlap=1.0)

    @activity.defn(name="reindex_watch")
    async def watch(self, watch: GapWatch) -> Watched:
        if self.failure:
            raise application_error(ConfigError(self.failure))
        # Time is skipped between two attempts alone, not while an activity runs.
        raise application_error(RetryLater("nothing to tell", DAY_S))

    @activity.defn(name="reindex_activate")
    async def activate(self, order: Activation) -> Activated:
        if self.gaps and order.gaps is not None:
            return Activated(gap=self.gaps.pop())
        self.done.append(f"activate {order.number}")
        return Activated()

    @activity.defn(name="reindex_short_parity")
    async def short_parity(self, version: VersionOf) -> ShortParity:
        return ShortParity(rows=5, differing=self.differing)

    @activity.defn(name="reindex_leave")
    async def leave(self, look: WritersLook) -> Left:
        self.done.append(f"leave {look.number}")
        return Left(writing=())

    @activity.defn(name="reindex_drop")
    async def drop(self, version: VersionOf) -> Dropped:
        self.done.append(f"drop {version.number}")
        return Dropped(keys=0)

    @property
    def all(self) -> list[Any]:
        found = [getattr(self, name) for name in dir(type(self)) if name != "all"]
        return [one for one in found if hasattr(one, "__temporal_activity_definition")]


class Skipped:
    """A Temporal whose time is skipped, a worker, and one reindex."""

    def __init__(self, env: WorkflowEnvironment, registry: ScriptedRegistry, queue: str) -> None:
        self.registry = registry
        self.handle = env.client.get_workflow_handle_for(Reindex.run, f"reindex-{queue}")
        self._env = env
        self._queue = queue

    async def start(self, *, auto: bool = True) -> None:
        await self._env.client.start_workflow(
            Reindex.run,
            ReindexOrder(pipeline="p", changes=Changes(m=32), auto=auto),
            id=self.handle.id,
            task_queue=self._queue,
        )

    async def reached(self, phase: str) -> ReindexStatus:
        while True:
            found = await self.handle.query(Reindex.status)
            if found.phase == phase:
                return found
            assert (await self.handle.describe()).status is WorkflowExecutionStatus.RUNNING, found

    async def skip(self, seconds: float) -> None:
        await self._env.fast_forward(self.handle, timedelta(seconds=seconds))

    async def result(self) -> Reindexed:
        return await self.handle.result()


@pytest.fixture(scope="module")
async def env() -> AsyncIterator[WorkflowEnvironment]:
    async with await WorkflowEnvironment.start_time_skipping_v2(
        ts_config=TimeSkippingConfig(enabled=False),
        dev_server_existing_path=str(Path(sys.executable).parent / "temporal"),
        dev_server_extra_args=["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true"],
        data_converter=pydantic_data_converter,
    ) as one:
        await search_attributes.ensure(one.client)
        yield one


@pytest.fixture
async def skipped(env: WorkflowEnvironment) -> AsyncIterator[Skipped]:
    registry, queue = ScriptedRegistry(), uuid.uuid4().hex[:8]
    async with Worker(
        env.client,
        task_queue=queue,
        workflows=[Reindex, Filled, Checked],
        activities=registry.all,
        workflow_runner=sandbox(),
        # Every decision is made from the history alone: what cannot be replayed fails at once.
        max_cached_workflows=0,
    ):
        yield Skipped(env, registry, queue)


SWAP = ["register", "measure", "activate 2"]


async def test_the_old_version_is_kept_for_the_grace_period_and_no_longer(skipped: Skipped) -> None:
    await skipped.start()
    await skipped.reached(GRACE)
    await skipped.skip(29 * DAY_S)
    assert skipped.registry.done == SWAP
    await skipped.skip(2 * DAY_S)
    done = await skipped.result()
    assert (done.outcome, done.rows) == ("activated", 5)
    assert skipped.registry.done == [*SWAP, "leave 1", "drop 1"]


async def test_readers_are_given_the_old_version_again_on_any_day_of_it(skipped: Skipped) -> None:
    await skipped.start()
    await skipped.reached(GRACE)
    await skipped.skip(20 * DAY_S)
    await skipped.handle.execute_update(Reindex.rollback, Rollback())
    await skipped.skip(60.0)
    assert (await skipped.result()).outcome == "rolled_back"
    assert skipped.registry.done == [*SWAP, "activate 1", "leave 2", "drop 2"]


async def test_an_old_version_that_is_not_whole_is_only_given_to_readers_by_force(skipped: Skipped) -> None:
    await skipped.start()
    await skipped.reached(GRACE)
    skipped.registry.differing = {"missing": 2}
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await skipped.handle.execute_update(Reindex.rollback, Rollback())
    assert "'missing': 2" in reason(refused.value)
    skipped.registry.differing, skipped.registry.gaps = {}, ["redis_went_back"]
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await skipped.handle.execute_update(Reindex.rollback, Rollback())
    assert "redis_went_back" in reason(refused.value)
    skipped.registry.gaps = ["redis_went_back"]
    await skipped.handle.execute_update(Reindex.rollback, Rollback(force=True))
    with pytest.raises(WorkflowUpdateFailedError):
        await skipped.handle.execute_update(Reindex.rollback, Rollback(force=True))
    await skipped.skip(60.0)
    assert (await skipped.result()).outcome == "rolled_back"


async def test_recall_below_the_least_waits_for_a_person_for_days_and_then_for_force(
    skipped: Skipped,
) -> None:
    skipped.registry.recall = 0.8
    await skipped.start(auto=True)
    reached = await skipped.reached(APPROVAL)
    assert reached.gate is not None
    assert reached.gate.failures == ("recall@10 is 0.800, and must be 0.9",)
    await skipped.skip(3 * DAY_S)
    assert skipped.registry.done == SWAP[:2]
    with pytest.raises(WorkflowUpdateFailedError):
        await skipped.handle.execute_update(Reindex.approve, Approval())
    await skipped.handle.execute_update(Reindex.approve, Approval(force=True))
    assert skipped.registry.done == SWAP
    await skipped.handle.execute_update(Reindex.finish)
    await skipped.skip(60.0)
    assert (await skipped.result()).outcome == "activated"


async def test_a_version_that_waits_for_approval_and_is_given_up_fails_the_reindex(skipped: Skipped) -> None:
    await skipped.start(auto=False)
    await skipped.reached(APPROVAL)
    skipped.registry.failure = "the model is gone"
    await skipped.skip(DAY_S + 60)
    with pytest.raises(WorkflowFailureError) as failed:
        await skipped.result()
    assert reason(failed.value) == "the model is gone"
    assert skipped.registry.done == [*SWAP[:2], "leave 2", "drop 2"]


async def test_what_the_log_lacked_meanwhile_is_filled_anew_before_readers_see_it(skipped: Skipped) -> None:
    skipped.registry.gaps = ["redis_went_back"]
    await skipped.start()
    reached = await skipped.reached(GRACE)
    assert "redis_went_back" in reached.note
    assert skipped.registry.done == ["register", "measure", "measure", "activate 2"]


async def test_a_reindex_that_is_cancelled_in_its_grace_period_leaves_one_version(skipped: Skipped) -> None:
    await skipped.start()
    await skipped.reached(GRACE)
    await skipped.handle.cancel()
    await skipped.skip(60.0)
    with pytest.raises(WorkflowFailureError):
        await skipped.result()
    assert skipped.registry.done == [*SWAP, "leave 1", "drop 1"]


async def test_a_rejected_version_is_removed_and_was_never_seen(skipped: Skipped) -> None:
    await skipped.start(auto=False)
    await skipped.reached(APPROVAL)
    await skipped.handle.execute_update(Reindex.reject)
    assert (await skipped.result()).outcome == "rejected"
    assert skipped.registry.done == [*SWAP[:2], "leave 2", "drop 2"]

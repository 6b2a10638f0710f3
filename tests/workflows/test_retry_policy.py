"""The retry workflow over days, in a Temporal whose time is skipped; what it would do is done by a small fake."""

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.client import WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import TimeSkippingConfig, WorkflowEnvironment
from temporalio.worker import Worker

from daemon.errors import ConfigError, RetryLater
from daemon.source.record import Coordinates
from workflows import search_attributes
from workflows.failures import application_error
from workflows.registry import sandbox
from workflows.retry.contract import (
    AllTried,
    Attempts,
    Complaint,
    Feed,
    GivenUp,
    Held,
    Letter,
    RetryPolicy,
    RetryStart,
    RetryState,
    Selection,
    Tried,
    TryOutcome,
)
from workflows.retry.workflow import Retry

DAY_S = 24 * 3600.0
POLICY = RetryPolicy(
    pause_s_min=60.0,
    pause_s_max=4 * 3600.0,
    attempts_max=4,
    give_up_after_s=14 * 24 * 3600.0,
    documents_max=3,
    wait_for_change=("oversized_text",),
)
HASTY = replace(POLICY, pause_s_min=0.01, pause_s_max=0.02)


class Row:
    """One document of the fake: answers `outcome` to a try, and to a look whether something newer is stored."""

    def __init__(self, outcome: TryOutcome, newer: bool = False) -> None:
        self.outcome = outcome
        self.newer = newer
        self.tries = 0
        self.looks = 0


class ScriptedRows:
    """Stands where the activity does."""

    def __init__(self) -> None:
        self.policy = POLICY
        self.rows: dict[str, Row] = {}
        self.calls = 0
        self.failures: list[BaseException] = []

    @activity.defn(name="retry_dead_letters")
    async def retry(self, wanted: Attempts) -> AllTried:
        self.calls += 1
        if self.failures:
            raise self.failures.pop()
        tried = []
        for attempt in wanted.attempts:
            row = self.rows[attempt.letter.name]
            row.looks += attempt.look
            row.tries += not attempt.look
            outcome = row.outcome
            if attempt.look:
                outcome = TryOutcome.SUPERSEDED if row.newer else TryOutcome.WAITING
            complaint = Complaint(attempt.letter.reason, "why") if outcome is TryOutcome.REFUSED else None
            tried.append(Tried(attempt.letter, outcome, complaint))
        return AllTried(tuple(tried), self.policy)


class Skipped:
    """A Temporal whose time is skipped, a worker, and one retry workflow."""

    def __init__(self, env: WorkflowEnvironment, rows: ScriptedRows, queue: str) -> None:
        self.rows = rows
        self.calls_max = 1000
        self.handle = env.client.get_workflow_handle_for(Retry.run, f"retry-{queue}")
        self._env = env
        self._queue = queue
        self._letters: list[Letter] = []

    async def feed(self, *names: str, reason: str = "embedder_refused") -> None:
        """Dead letters of these documents."""
        first, now_s = len(self._letters), time.time()
        letters = [
            Letter(name, name, reason, "", now_s, Coordinates("dead", 0, first + number), None)
            for number, name in enumerate(names)
        ]
        self._letters += letters
        await self._tell(letters)

    async def feed_all_again(self) -> None:
        await self._tell(self._letters)

    async def _tell(self, letters: Sequence[Letter]) -> None:
        await self._env.client.start_workflow(
            Retry.run,
            RetryStart("p", self.rows.policy, calls_max=self.calls_max),
            id=self.handle.id,
            task_queue=self._queue,
            start_signal="feed",
            start_signal_args=[Feed(tuple(letters), (), self.rows.policy)],
        )

    async def skip(self, seconds: float) -> None:
        await self._env.fast_forward(self.handle, timedelta(seconds=seconds))

    async def state(self) -> RetryState:
        return await self.handle.query(Retry.held)

    async def held(self) -> dict[str, Held]:
        return {held.letter.name: held for held in (await self.state()).held}


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
    rows, queue = ScriptedRows(), uuid.uuid4().hex[:8]
    async with Worker(
        env.client,
        task_queue=queue,
        workflows=[Retry],
        activities=[rows.retry],
        workflow_runner=sandbox(),
        # Every decision is made from the history alone: what cannot be replayed fails at once.
        max_cached_workflows=0,
    ):
        yield Skipped(env, rows, queue)


async def test_a_refused_row_is_tried_until_the_policy_gives_it_up_and_is_then_only_looked_at(
    skipped: Skipped,
) -> None:
    skipped.rows.rows["a"] = row = Row(TryOutcome.REFUSED)
    await skipped.feed("a")
    await skipped.skip(DAY_S / 2)
    assert row.tries == POLICY.attempts_max
    held = await skipped.held()
    assert held["a"].given_up is GivenUp.ATTEMPTS
    assert 2 <= row.looks <= 10
    row.newer = True
    await skipped.skip(POLICY.pause_s_max)
    description = await skipped.handle.describe()
    assert description.status is WorkflowExecutionStatus.COMPLETED
    end = await skipped.handle.result()
    assert (end.taken, end.totals) == (1, {TryOutcome.REFUSED: 4, TryOutcome.SUPERSEDED: 1})


async def test_a_row_that_must_change_is_never_tried_by_time_alone_but_when_a_person_asks(
    skipped: Skipped,
) -> None:
    skipped.rows.rows["a"] = row = Row(TryOutcome.REFUSED)
    await skipped.feed("a", reason="oversized_text")
    await skipped.skip(DAY_S / 2)
    assert row.looks > POLICY.attempts_max
    assert (row.tries, (await skipped.held())["a"].given_up) == (0, None)
    row.outcome = TryOutcome.APPLIED
    round_ = await skipped.handle.execute_update(Retry.try_now, Selection(key="a"))
    assert round_.asked == 1
    assert (await skipped.handle.result()).totals == {TryOutcome.APPLIED: 1}
    assert row.tries == 1


async def test_a_part_that_is_away_for_hours_is_no_attempt_of_the_row(skipped: Skipped) -> None:
    skipped.rows.rows["a"] = row = Row(TryOutcome.APPLIED)
    skipped.rows.failures = [application_error(RetryLater("the embedder is away", 3600.0)) for _ in range(6)]
    await skipped.feed("a")
    await skipped.skip(5 * 3600.0)
    assert skipped.rows.calls > POLICY.attempts_max
    held = await skipped.held()
    assert (row.tries, held["a"].attempts, held["a"].given_up) == (0, 0, None)
    await skipped.skip(3 * 3600.0)
    assert (await skipped.handle.result()).totals == {TryOutcome.APPLIED: 1}


async def test_a_failure_that_a_person_must_mend_stops_the_tries_and_loses_nothing(skipped: Skipped) -> None:
    skipped.rows.rows["a"] = row = Row(TryOutcome.APPLIED)
    skipped.rows.failures = [application_error(ConfigError("the pipeline is gone; bring it back"))]
    await skipped.feed("a")
    await skipped.skip(POLICY.pause_s_min)
    async with asyncio.timeout(60):
        while not (status := await skipped.handle.query(Retry.status)).trouble:  # noqa: ASYNC110 - a query has no event
            await asyncio.sleep(0.05)
    assert status.trouble == "the pipeline is gone; bring it back"
    assert (row.tries, status.waiting) == (0, {"embedder_refused": 1})
    await skipped.skip(600.0)
    assert (await skipped.handle.result()).totals == {TryOutcome.APPLIED: 1}


async def test_dead_letters_that_are_told_twice_count_once_over_all_runs(skipped: Skipped) -> None:
    skipped.rows.rows = {"a": Row(TryOutcome.REFUSED), "b": Row(TryOutcome.APPLIED)}
    await skipped.feed("a", "b")
    await skipped.feed_all_again()
    await skipped.skip(600.0)
    before = await skipped.state()
    await skipped.feed_all_again()
    after = await skipped.state()
    assert (before.taken, after.taken) == (2, 2)
    assert skipped.rows.rows["b"].tries == 1
    assert [held.attempts for held in before.held] == [held.attempts for held in after.held]


async def test_runs_are_short_and_what_is_held_goes_from_one_to_the_next(skipped: Skipped) -> None:
    skipped.rows.rows["a"] = Row(TryOutcome.REFUSED)
    skipped.rows.policy, skipped.calls_max = HASTY, 3
    await skipped.feed("a")
    first = (await skipped.handle.describe()).run_id
    while skipped.rows.rows["a"].looks < 6:  # noqa: ASYNC110 - the fake is told in this loop
        await asyncio.sleep(0.05)
    state = await skipped.state()
    assert (await skipped.handle.describe()).run_id != first
    assert state.totals == {TryOutcome.REFUSED: HASTY.attempts_max}
    assert [held.given_up for held in state.held] == [GivenUp.ATTEMPTS]


async def test_a_full_workflow_says_that_the_rest_waits_in_kafka(skipped: Skipped) -> None:
    names = [f"k{number}" for number in range(POLICY.documents_max)]
    skipped.rows.rows = {name: Row(TryOutcome.REFUSED) for name in names}
    await skipped.feed(*names)
    assert (await skipped.handle.query(Retry.status)).room == 0
    assert "wait in Kafka" in (await skipped.handle.query(Retry.progress)).note
    assert await skipped.handle.execute_update(Retry.drop, Selection(key="k0")) == 1
    assert (await skipped.handle.query(Retry.status)).room == 1


async def test_what_is_not_held_can_neither_be_tried_nor_dropped(skipped: Skipped) -> None:
    skipped.rows.rows["a"] = Row(TryOutcome.REFUSED)
    await skipped.feed("a")
    for update in (Retry.try_now, Retry.drop):
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await skipped.handle.execute_update(update, Selection(reason="not_numeric"))
        assert "'not_numeric' is held" in str(refused.value.cause)
    assert await skipped.handle.execute_update(Retry.drop, Selection()) == 1
    assert (await skipped.handle.result()).totals == {TryOutcome.DROPPED: 1}


async def test_nothing_is_tried_while_it_is_paused(skipped: Skipped) -> None:
    skipped.rows.rows["a"] = row = Row(TryOutcome.APPLIED)
    await skipped.feed("a")
    await skipped.handle.execute_update(Retry.pause)
    await skipped.skip(3600.0)
    assert row.tries == 0
    await skipped.handle.execute_update(Retry.resume)
    assert (await skipped.handle.result()).taken == 1

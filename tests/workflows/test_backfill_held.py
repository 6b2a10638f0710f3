"""A backfill can be held, slowed, cancelled, and outlives its worker."""

import asyncio
from pathlib import Path

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError

from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable
from tests.workflows.backfills import Backfills, forget, insert, now, until_done
from workflows.client import reason
from workflows.progress import Progress


async def test_it_is_paused_and_resumed_and_refuses_what_makes_no_sense(empty: MirroredTable) -> None:
    insert(empty, 1, 400)
    empty.wait_equal()
    forget(empty)
    backfills = await Backfills.of(empty)
    handle = await backfills.start(rate=20.0)
    await until_done(backfills, handle, 1)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update("resume")
    assert reason(refused.value) == "it is not paused"
    answer = await handle.execute_update("pause", result_type=Progress)
    assert answer.phase == "paused"
    assert "**paused**" in await backfills.details(handle)
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update("pause")
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update("throttle", -1.0)

    async def rests() -> int:
        """Rows in the index, once no activity runs."""
        for _ in range(600):
            if not (await handle.describe()).raw_description.pending_activities:
                return len(empty.indexed())
            await asyncio.sleep(0.1)
        raise AssertionError("an activity still runs after a minute")

    count = await rests()
    assert 0 < count < 400
    assert f"{count} of about" in await backfills.details(handle)
    await handle.execute_update("throttle", 0.0)
    assert (await now(backfills, handle)).phase == "paused"
    assert await rests() == count
    await handle.signal("resume")
    done = await handle.result()
    assert (done.rows, done.outcomes) == (400, {"embedded": 400})
    assert empty.indexed() == empty.expected()


async def test_a_cancelled_one_keeps_what_it_has_done_and_says_where_to_go_on(empty: MirroredTable) -> None:
    insert(empty, 1, 400)
    empty.wait_equal()
    forget(empty)
    backfills = await Backfills.of(empty)
    handle = await backfills.start(rate=20.0)
    await until_done(backfills, handle, 1)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    await backfills.status(handle, "CANCELED")
    count = len(empty.indexed())
    assert 0 < count < 400
    assert f"--from {count}" in await backfills.details(handle)
    done = await backfills.run(from_key=str(count))
    assert done.rows == 400 - count + 1
    assert empty.indexed() == empty.expected()


async def test_what_a_killed_worker_was_doing_goes_on_from_its_last_heartbeat(
    stack: Stack, tmp_path: Path
) -> None:
    table = MirroredTable(stack, tmp_path)
    try:
        table.connect()
        insert(table, 1, 600)
        with table.daemon():
            table.wait_equal()
        forget(table)
        backfills = await Backfills.of(table)
        with table.worker() as worker:
            handle = await backfills.start(rate=100.0)
            before = await until_done(backfills, handle, 100)
            worker.kill()
        with table.worker() as worker:
            done = await handle.result()
            assert done.rows == sum(done.outcomes.values()) == 600
            assert sum(worker.outcomes().values()) <= 600 - before
        assert table.indexed() == table.expected()
    finally:
        table.close()


async def test_a_worker_that_is_told_to_stop_hands_over_at_once(mirrored: MirroredTable) -> None:
    mirrored.connect()
    insert(mirrored, 1, 600)
    with mirrored.daemon():
        mirrored.wait_equal()
    forget(mirrored)
    backfills = await Backfills.of(mirrored)
    with mirrored.worker() as worker:
        handle = await backfills.start(rate=20.0)
        await until_done(backfills, handle, 1)
        assert worker.terminate() == 0
    with mirrored.worker() as worker:
        await handle.execute_update("throttle", 0.0)
        done = await handle.result()
        assert (done.rows, done.outcomes) == (600, {"embedded": 600})
    history = await handle.fetch_history()
    attempts = [
        event.activity_task_started_event_attributes.attempt
        for event in history.events
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert set(attempts) == {1}, "nothing failed or timed out: it ended with what it had done"


async def test_a_long_one_is_continued_as_new_with_all_that_it_knew(empty: MirroredTable) -> None:
    insert(empty, 1, 400)
    empty.wait_equal()
    forget(empty)
    backfills = await Backfills.of(empty)
    handle = await backfills.start(rate=50.0, slice_s=0.2, slices_per_run=2)
    done = await handle.result()
    runs = [one async for one in backfills.client.list_workflows(f"WorkflowId = '{handle.id}'")]
    latest = await backfills.client.get_workflow_handle(handle.id).describe()
    assert latest.run_id != handle.first_execution_run_id
    assert (done.rows, done.outcomes, len(runs) > 1) == (400, {"embedded": 400}, True)
    assert empty.indexed() == empty.expected()

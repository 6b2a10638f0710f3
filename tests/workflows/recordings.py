"""Scenarios whose histories are kept and replayed. A new workflow adds a function and a line below.

Each gets a table with connector, daemon and worker running, and gives what is kept: file name -> `workflow id`, or
`workflow id/run id` for another run than the latest.
"""

import asyncio
from collections.abc import Awaitable, Callable

from tests.support.mirrored_table import MirroredTable
from tests.workflows.backfills import Backfills, insert
from tests.workflows.reconciles import eventually, started, subject
from tests.workflows.reindexes import Reindexes
from tests.workflows.retries import Retries
from workflows.reconcile.workflow import ReconcileOrder
from workflows.reindex.contract import APPROVAL, BACKFILLING, Approval, Rollback
from workflows.retry.contract import Selection
from workflows.retry.workflow import Retry

Recording = Callable[[MirroredTable], Awaitable[dict[str, str]]]


async def backfill_held(table: MirroredTable) -> dict[str, str]:
    """Waits for a transaction, is paused, resumed, throttled, continued as new; ends with a sweep."""
    insert(table, 1, 400)
    backfills = await Backfills.of(table)
    table.execute("begin; select pg_current_xact_id()")
    handle = await backfills.start(rate=100.0, slice_s=0.1, slices_per_run=2)
    await backfills.until(
        handle, lambda found: "idle in transaction" in found.note, "the transaction is named"
    )
    table.execute("commit")
    await backfills.phase(handle, "copying")
    await handle.execute_update("pause")
    await backfills.phase(handle, "paused")
    await handle.execute_update("throttle", 400.0)
    await handle.signal("resume")
    await handle.result()
    return {
        "backfill_continued": f"{handle.id}/{handle.first_execution_run_id}",
        "backfill_ended": handle.id,
    }


async def backfill_cancelled(table: MirroredTable) -> dict[str, str]:
    """Of a part of the table; cancelled while rows are copied."""
    insert(table, 1, 400)
    backfills = await Backfills.of(table)
    handle = await backfills.start(where="id > 10", rate=20.0)
    await backfills.phase(handle, "copying")
    await asyncio.sleep(1)
    await handle.cancel()
    await backfills.status(handle, "CANCELED")
    return {"backfill_cancelled": handle.id}


async def reconcile_mended(table: MirroredTable) -> dict[str, str]:
    """One is due, so a backfill goes first; then ranges beside the walk, throttled, paused and resumed."""
    insert(table, 1, 1200)
    table.wait_equal()
    table.redis.hset(f"lv:{table.name}:reconcile", "redis_went_back", "1.0")
    order = ReconcileOrder(subject=subject(table, repair=True, rows_per_range=400), rate=400.0)
    handle = await started(table, order)

    async def checking() -> bool:
        return bool((await handle.query("progress"))["phase"] == "checking")

    await eventually(checking)
    await handle.execute_update("pause")
    table.redis.delete(*table.redis.scan_iter(match=f"lv:{table.name}:1:doc:*:1199:0", count=1000))
    await handle.signal("resume")
    await handle.execute_update("throttle", 0.0)
    assert (await handle.result()).backfilled
    return {"reconcile_mended": handle.id}


async def retry_tried(table: MirroredTable) -> dict[str, str]:
    """One document is applied, one is refused and goes on to the next run, is tried for a person, is dropped."""
    table.execute("insert into $T values (1, 'row', 'of no number', 'x', 'NaN')")
    retries = await Retries.of(table)
    await retries.until_held("1")
    await retries.handle.execute_update(Retry.drop, Selection(key="1"))
    await retries.handle.result()
    first = await retries.feed("1", "2", calls_max=1)
    second = await retries.until_run(3)
    asked = await retries.handle.execute_update(Retry.try_now, Selection(key="1"))
    assert asked.asked == 1
    await retries.until_run(4)
    await retries.handle.execute_update(Retry.pause)
    await retries.handle.execute_update(Retry.resume)
    await retries.handle.execute_update(Retry.drop, Selection())
    await retries.handle.result()
    return {
        "retry_continued": f"{retries.handle.id}/{first}",
        "retry_asked": f"{retries.handle.id}/{second}",
        "retry_ended": retries.handle.id,
    }


async def reindexed(table: MirroredTable) -> dict[str, str]:
    """One is held and rejected while it fills, one is approved and rolled back, one approves itself and is finished."""
    insert(table, 1, 400)
    table.wait_equal()
    reindexes = await Reindexes.of(table)
    rejected = await reindexes.start(m=17, rate=50.0)
    await reindexes.reached(rejected, BACKFILLING)
    await rejected.execute_update("pause")
    await rejected.execute_update("throttle", 40.0)
    await rejected.execute_update("resume")
    await rejected.execute_update("reject")
    await rejected.result()
    rolled_back = await reindexes.start(m=18, auto=False)
    await reindexes.reached(rolled_back, APPROVAL)
    await rolled_back.execute_update("approve", Approval())
    await rolled_back.execute_update("rollback", Rollback())
    await rolled_back.result()
    finished, _ = await reindexes.swapped(m=19)
    await finished.execute_update("finish")
    await finished.result()
    return {
        f"reindex_{name}": f"{handle.id}/{handle.first_execution_run_id}"
        for name, handle in (("rejected", rejected), ("rolled_back", rolled_back), ("finished", finished))
    }


RECORDINGS: tuple[Recording, ...] = (
    retry_tried,
    backfill_held,
    backfill_cancelled,
    reconcile_mended,
    reindexed,
)

"""Everything that a backfill uses is killed once, while rows change: it goes on, and index and table are equal."""

from tests.mirrored_table import MirroredTable
from tests.workflows.backfills import Backfills, check, editing, forget, insert, until_done

ROWS = 900
RATE = 50.0
BETWEEN = 130
"""Rows between two kills."""


async def test_it_outlives_all_that_it_uses(mirrored: MirroredTable) -> None:
    stack = mirrored.stack
    mirrored.connect()
    insert(mirrored, 1, ROWS)
    daemon = mirrored.start_daemon().wait_ready()
    mirrored.wait_equal()
    forget(mirrored)
    worker = mirrored.start_worker().wait_ready()
    backfills = await Backfills.of(mirrored)
    with editing(mirrored, ROWS):
        handle = await backfills.start(rate=RATE)
        done = await until_done(backfills, handle, 1)
        for number, victim in enumerate(("redis", "triton", "worker", "daemon", "temporal"), 1):
            if victim == "worker":
                worker.kill()
                worker = mirrored.start_worker().wait_ready()
            elif victim == "daemon":
                daemon.kill()
                daemon = mirrored.start_daemon().wait_ready()
            else:
                stack.kill(victim)
            done = await until_done(backfills, handle, min(done + BETWEEN, number * BETWEEN))
        result = await handle.result()
    assert result.swept is not None
    assert result.rows == sum(result.outcomes.values())
    mirrored.wait_equal()
    report = await check(mirrored)
    assert report.ok, report.differing

"""Everything that a reindex uses is killed once, while rows change: the new version that readers get is whole."""

import time

import redis.exceptions as redis_errors

from tests.chaos.processes import VICTIMS, Processes
from tests.support.mirrored_table import MirroredTable, wait_until
from tests.workflows.backfills import editing, insert
from tests.workflows.reindexes import Reindexes
from workflows.reindex.contract import GRACE

ROWS = 460
EDITED = 20
BETWEEN = 55
"""Documents in the new version between two kills."""


async def test_what_it_gives_to_readers_is_whole_whatever_was_killed(mirrored: MirroredTable) -> None:
    mirrored.connect()
    insert(mirrored, 1, ROWS)
    processes = Processes(mirrored)
    mirrored.wait_equal()
    reindexes = await Reindexes.of(mirrored)
    old = (await reindexes.versions()).active
    new = old + 1

    def filled(least: int) -> bool:
        try:
            return len(reindexes.texts(new)) >= least
        except redis_errors.ConnectionError:
            return False  # just killed

    began_s = time.monotonic()
    with editing(mirrored, EDITED, 0.02):
        # Another text: every document is embedded again.
        handle = await reindexes.start(rate=50.0, text="{title} - {body}")
        for number, victim in enumerate(VICTIMS, 1):
            wait_until(lambda least=120 + number * BETWEEN: filled(least))  # type: ignore[misc]
            assert (await reindexes.versions()).active == old
            processes.kill(victim)
        await handle.execute_update("throttle", 0.0)
        reached = await reindexes.reached(handle, GRACE)
    print(
        f"reindex of {ROWS:,} rows beside live changes, five parts killed: {time.monotonic() - began_s:.0f} s"
    )
    assert reached.new is not None
    assert reached.new.number == (await reindexes.versions()).active == new
    wait_until(lambda: mirrored.committed() == mirrored.end_offsets())
    for number in (old, new):
        assert (await reindexes.check(number)).ok
    assert reindexes.alias() == f"{mirrored.name}:{new}"
    assert all(" - " in text for text in reindexes.texts(new).values())
    await handle.terminate("the test is over")

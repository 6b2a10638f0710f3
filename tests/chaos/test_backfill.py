"""Everything that a backfill uses is killed once, while rows change: it goes on, and index and table are equal.

LIVEVEC_CHAOS_ROWS=50000 makes it a long one, at full speed.
"""

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import Any

from daemon.bench.percentiles import percentiles_ms
from tests.chaos.processes import VICTIMS, Processes
from tests.support.mirrored_table import DaemonProcess, MirroredTable
from tests.workflows.backfills import Backfills, check, editing, forget, insert, until_done

ROWS_SHORT = 900
ROWS = int(os.environ.get("LIVEVEC_CHAOS_ROWS", ROWS_SHORT))
RATE = 50.0 if ROWS == ROWS_SHORT else None
BETWEEN = ROWS // 7
"""Rows between two kills."""
TARGET_S = 0.1


class Samples:
    """The latencies that the daemons tell, over their lives, of changes committed from now on."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.kills_s: dict[str, float] = {}
        self._stop = threading.Event()

    @contextmanager
    def collected(self, daemon: Callable[[], DaemonProcess]) -> Iterator[None]:
        thread = threading.Thread(target=self._collect, args=(daemon,))
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _collect(self, daemon: Callable[[], DaemonProcess]) -> None:
        last, after = None, 0
        while not self._stop.wait(0.5):
            if daemon() is not last:
                last, after = daemon(), 0
            try:
                answer = last.get(f"/samples.json?after={after}")
            except OSError:
                continue
            after = answer["count"]
            self.found += answer["samples"]

    def recoveries_s(self) -> dict[str, float]:
        """From each kill to the first change from which on those of a whole second were in time."""
        return {victim: self._recovered_at_s(kill_s) - kill_s for victim, kill_s in self.kills_s.items()}

    def outside_kills_s(self) -> list[float]:
        """Of the changes since the first kill that waited for no recovery."""
        waited = [(kill_s - 1, self._recovered_at_s(kill_s)) for kill_s in self.kills_s.values()]
        begin_s = min(self.kills_s.values())
        return [
            sample["total"]
            for sample in self.found
            if (at_s := sample["committed_at"]) >= begin_s
            and not any(from_s <= at_s < until_s for from_s, until_s in waited)
        ]

    def _recovered_at_s(self, kill_s: float) -> float:
        after = sorted((sample["committed_at"], sample["total"]) for sample in self.found)
        after = after[bisect_left(after, (kill_s, 0.0)) :]
        for number, (at_s, _) in enumerate(after):
            second = takewhile(lambda one: one[0] < at_s + 1, islice(after, number, None))  # noqa: B023 - used at once
            if all(total_s <= TARGET_S for _, total_s in second):
                return at_s
        return after[-1][0] if after else kill_s


async def test_it_outlives_all_that_it_uses(mirrored: MirroredTable) -> None:
    mirrored.connect()
    insert(mirrored, 1, ROWS)
    processes = Processes(mirrored)
    mirrored.wait_equal(90 + ROWS / 100)
    forget(mirrored)
    backfills = await Backfills.of(mirrored)
    samples = Samples()
    began_s = time.monotonic()
    with editing(mirrored, ROWS, 0.02), samples.collected(lambda: processes.daemon):
        handle = await backfills.start(rate=RATE)
        done = await until_done(backfills, handle, 1)
        for number, victim in enumerate(VICTIMS, 1):
            samples.kills_s[victim] = time.time()
            processes.kill(victim)
            done = await until_done(backfills, handle, min(done + BETWEEN, number * BETWEEN))
        result = await handle.result()
    live = percentiles_ms(samples.outside_kills_s())
    recoveries = ", ".join(f"{victim} {s:.1f}" for victim, s in samples.recoveries_s().items())
    print(
        f"backfill of {result.rows:,} rows beside live changes, five parts killed: "
        f"{time.monotonic() - began_s:.0f} s; live changes in time again, s: {recoveries}; outside of that, ms: {live}"
    )
    assert result.swept is not None
    assert result.rows == sum(result.outcomes.values())
    mirrored.wait_equal()
    report = await check(mirrored)
    assert report.ok, report.differing

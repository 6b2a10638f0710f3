"""Measuring throughput: many changes of one commit, from that commit until the last of them is acknowledged."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.bench.latency import MeasuredSystem, OnProgress
from daemon.bench.load import LoadRow
from daemon.errors import LivevecError

_STALLED_AFTER_S = 60.0
_POLL_S_MIN = 0.01
_POLL_S_FIRST = 0.05
_POLL_S_MAX = 0.25


@dataclass(frozen=True, slots=True)
class Bulk:
    """Many changes at once: how long they took, and the CPU time that the system's process used meanwhile."""

    changes: int
    seconds: float
    cpu_s: float

    @property
    def cpu_ms_per_change(self) -> float:
        return round(1000 * self.cpu_s / self.changes, 4)


class Stalled(LivevecError):
    """Changes stopped becoming searchable before all of them were."""


class BulkSystem(MeasuredSystem, Protocol):
    """A system that can be asked cheaply how far it is."""

    def acknowledged(self) -> int:
        """Return how many rows became searchable since the system started.

        Raises:
            LivevecError: the system has ended.
        """
        ...

    def cpu_s(self) -> float:
        """Return the CPU time that its process has used so far."""
        ...


def measure_copy(system: BulkSystem, rows: Sequence[LoadRow], on_progress: OnProgress) -> Bulk:
    """COPY `rows` in one transaction, and wait until all of them are searchable.

    Raises:
        LivevecError: rows did not become searchable.
    """
    before, cpu_before_s = system.acknowledged(), system.cpu_s()
    system.table.copy(rows)
    wait_for(lambda: system.acknowledged() - before, len(rows), system.name, on_progress)
    cpu_s = system.cpu_s() - cpu_before_s
    # The system's own clock of each row is finer than the polling, and asking for it costs the system time.
    ids = {str(row.id) for row in rows}
    seconds = max(latency.total_s for latency in system.arrived() if latency.id in ids)
    return Bulk(len(rows), seconds, cpu_s)


def wait_for(count: Callable[[], int], total: int, what: str, on_progress: OnProgress) -> None:
    """Poll until `count` is `total`; seldom while much is missing, since each question costs the measured system.

    Raises:
        Stalled: the count did not move for a minute.
        LivevecError: the count went past `total`.
    """
    began_s = moved_s = time.monotonic()
    last = 0
    while (done := count()) < total:
        now_s = time.monotonic()
        if done != last:
            last, moved_s = done, now_s
            on_progress(what, done, total)
        elif now_s - moved_s > _STALLED_AFTER_S:
            raise Stalled(
                f"{what}: {total - done} of {total} changes did not arrive within {_STALLED_AFTER_S:g} s after the "
                "others; see `livevec status`, and bench.log in the folder of logs"
            )
        time.sleep(pause_s(done, total, now_s - began_s))
    if done > total:
        raise LivevecError(
            f"{what}: {done} changes arrived instead of {total}, so some were read twice; measure again, and let "
            "nothing else use the stack"
        )
    on_progress(what, total, total)


def pause_s(done: int, total: int, elapsed_s: float) -> float:
    """Return the pause before the next question: half of the time that the rest takes at the speed so far."""
    if done <= 0:
        return _POLL_S_FIRST
    remaining_s = (total - done) * elapsed_s / done
    return min(max(remaining_s / 2, _POLL_S_MIN), _POLL_S_MAX)

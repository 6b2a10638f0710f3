"""Measures many changes of one commit: from that commit until the last of them is acknowledged."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.bench.latency import OnProgress, System
from daemon.bench.load import LoadRow, Table
from daemon.errors import LivevecError

_STALLED_AFTER_S = 60.0
_POLL_S_MIN = 0.01
_POLL_S_FIRST = 0.05
_POLL_S_MAX = 0.25


@dataclass(frozen=True, slots=True)
class Bulk:
    """`cpu_s`: what the system's process used meanwhile."""

    changes: int
    seconds: float
    cpu_s: float


class Stalled(LivevecError):
    """Changes did not come."""


class BulkSystem(System, Protocol):
    """A system that can be asked cheaply how far it is."""

    def acknowledged(self) -> int:
        """Rows that became searchable since it started.

        Raises:
            LivevecError: the system has ended.
        """
        ...

    def cpu_s(self) -> float:
        """CPU time of its process so far."""
        ...


class SkippingSystem(Protocol):
    """A system that tells changes apart that changed nothing."""

    table: Table

    def unchanged(self) -> int:
        """Changes of that kind handled since it started."""
        ...

    def cpu_s(self) -> float: ...


def measure_copy(system: BulkSystem, rows: Sequence[LoadRow], on_progress: OnProgress) -> Bulk:
    """COPY `rows` in one transaction.

    Raises:
        LivevecError: rows did not become searchable.
    """
    before, cpu_before_s = system.acknowledged(), system.cpu_s()
    system.table.copy(rows)
    wait_for(lambda: system.acknowledged() - before, len(rows), system.name, on_progress)
    cpu_s = system.cpu_s() - cpu_before_s
    # The system's own clock of each row is finer than the polling, and asking for it costs it time.
    wanted = {str(row.id) for row in rows}
    seconds = max(one.total_s for one in system.arrived() if one.id in wanted)
    return Bulk(len(rows), seconds, cpu_s)


def measure_unchanged(system: SkippingSystem, rows: int, on_progress: OnProgress) -> Bulk:
    """Update all `rows` of the table in one transaction without changing a value.

    Raises:
        LivevecError: changes did not end as unchanged.
    """
    before, cpu_before_s = system.unchanged(), system.cpu_s()
    updated = system.table.update_unchanged()
    began_s = time.monotonic()
    if updated != rows:
        raise LivevecError(
            f"the update found {updated} rows instead of {rows}; does another measurement run on this database?"
        )
    wait_for(lambda: system.unchanged() - before, rows, "unchanged", on_progress)
    return Bulk(rows, time.monotonic() - began_s, system.cpu_s() - cpu_before_s)


def wait_for(count: Callable[[], int], total: int, what: str, on_progress: OnProgress) -> None:
    """Poll until `count` is `total`; seldom while much is missing, since each question costs what is measured.

    Raises:
        Stalled: it did not move for a minute.
        LivevecError: it went past `total`.
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
                f"{what}: {total - done} of {total} changes did not come within {_STALLED_AFTER_S:g} s after the "
                "others; see `livevec status`, and bench.log in the folder of logs"
            )
        time.sleep(pause_s(done, total, now_s - began_s))
    if done > total:
        raise LivevecError(
            f"{what}: {done} changes came instead of {total}; some were read twice: measure again, and let "
            "nothing else use the stack"
        )
    on_progress(what, total, total)


def pause_s(done: int, total: int, elapsed_s: float) -> float:
    """Until the next question: half of the time that the rest takes at the speed so far."""
    if done <= 0:
        return _POLL_S_FIRST
    rest_s = (total - done) * elapsed_s / done
    return min(max(rest_s / 2, _POLL_S_MIN), _POLL_S_MAX)

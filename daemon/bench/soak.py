"""A live load of inserts, updates and deletes for minutes: latency, memory and queue, window by window."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.bench.latency import Latency, OnProgress
from daemon.bench.load import Table
from daemon.bench.percentiles import percentiles_ms

SEED = 20_261_125
WINDOWS_MAX = 60
_WINDOW_S_MIN = 2.0
_KINDS = ("insert", "update", "delete")
_SHARES = (40, 40, 20)


class SoakSystem(Protocol):
    table: Table

    def arrived(self) -> Sequence[Latency]: ...

    def queued(self) -> int: ...

    def rss_mb(self) -> float: ...


@dataclass(frozen=True)
class Statement:
    """`text` is empty for a delete."""

    kind: str
    id: int
    text: str


@dataclass(frozen=True)
class SoakWindow:
    """Latencies of what became searchable in it; memory and queue at its end.

    Attributes:
        at_s: its end, from the beginning of the load.
        count: inserts and updates that became searchable; a delete has no latency.
    """

    at_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    count: int
    rss_mb: float
    queue_changes: int


@dataclass(frozen=True)
class SoakRun:
    """All latencies, the windows, and how many statements of each kind there were."""

    latencies_s: Sequence[float]
    windows: Sequence[SoakWindow]
    statements: Counter[str]


def random_statements(texts: Sequence[str], seed: int) -> Iterator[Statement]:
    """Without end: inserts, updates to another text and deletes of rows that are there; the same for a seed."""
    draw = random.Random(seed)
    alive: list[int] = []
    number = 0
    while True:
        kind = draw.choices(_KINDS, _SHARES)[0] if alive else "insert"
        # The number makes each text new, so that each update has to be embedded.
        number += 1
        text = f"{draw.choice(texts)} {number}"
        if kind == "insert":
            alive.append(number)
            yield Statement(kind, number, text)
        elif kind == "update":
            yield Statement(kind, draw.choice(alive), text)
        else:
            at = draw.randrange(len(alive))
            alive[at], alive[-1] = alive[-1], alive[at]
            yield Statement(kind, alive.pop(), "")


def window_s(seconds: float) -> float:
    """Length of a window, for at most WINDOWS_MAX of them."""
    return max(_WINDOW_S_MIN, seconds / WINDOWS_MAX)


def soak(
    system: SoakSystem, texts: Sequence[str], rate: float, seconds: float, on_progress: OnProgress
) -> SoakRun:
    """Run statements at a steady rate, each its own commit.

    Raises:
        LivevecError: a part refused, or the system has ended.
    """
    statements = random_statements(texts, SEED)
    length_s = window_s(seconds)
    done: Counter[str] = Counter()
    windows: list[SoakWindow] = []
    latencies_s: list[float] = []
    system.arrived()
    began_s = time.monotonic()
    total = round(rate * seconds)
    for number in range(total):
        wait_s = began_s + number / rate - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        statement = next(statements)
        _execute(system.table, statement)
        done[statement.kind] += 1
        now_s = time.monotonic() - began_s
        if now_s >= length_s * (len(windows) + 1):
            windows.append(_window(system, now_s, latencies_s))
            on_progress("soak", number + 1, total)
    windows.append(_window(system, time.monotonic() - began_s, latencies_s))
    return SoakRun(latencies_s, windows, done)


def _execute(table: Table, statement: Statement) -> None:
    if statement.kind == "insert":
        table.execute(f"INSERT INTO {table.name} VALUES (%s, %s)".encode(), (statement.id, statement.text))
    elif statement.kind == "update":
        table.execute(
            f"UPDATE {table.name} SET body = %s WHERE id = %s".encode(), (statement.text, statement.id)
        )
    else:
        table.execute(f"DELETE FROM {table.name} WHERE id = %s".encode(), (statement.id,))


def _window(system: SoakSystem, at_s: float, latencies_s: list[float]) -> SoakWindow:
    found_s = [one.total_s for one in system.arrived()]
    latencies_s += found_s
    found = percentiles_ms(found_s)
    return SoakWindow(
        at_s=round(at_s, 1),
        p50_ms=found.p50,
        p95_ms=found.p95,
        p99_ms=found.p99,
        max_ms=found.max,
        count=found.count,
        rss_mb=system.rss_mb(),
        queue_changes=system.queued(),
    )

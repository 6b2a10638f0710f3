"""A live load of inserts, updates and deletes for minutes: latency, memory and queue, window by window."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.bench.latency import Latency, OnProgress
from daemon.bench.load import LoadTable
from daemon.bench.percentiles import Percentiles, percentiles_ms

SEED = 20_261_125
WINDOWS_MAX = 60
_WINDOW_S_MIN = 2.0
_KINDS = ("insert", "update", "delete")
_SHARES = (40, 40, 20)


class SoakSystem(Protocol):
    table: LoadTable

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
    """All latencies, the windows, and how many statements of each kind were executed."""

    latencies_s: Sequence[float]
    windows: Sequence[SoakWindow]
    statements: Counter[str]


@dataclass(frozen=True)
class SoakReport:
    """`rss_mb_first`: at the end of the first window. `lost`: changes that the index does not know at the end."""

    seconds: float
    rate: float
    target_ms: float
    inserts: int
    updates: int
    deletes: int
    live_ms: Percentiles
    rss_mb_first: float
    rss_mb_max: float
    rss_mb_last: float
    queue_changes_max: int
    lost: int
    windows: list[SoakWindow]


def random_statements(texts: Sequence[str], seed: int) -> Iterator[Statement]:
    """Yield inserts, updates to another text, and deletes of existing rows, without end; the same for a seed."""
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
    """Return the length of a window, such that there are at most WINDOWS_MAX of them."""
    return max(_WINDOW_S_MIN, seconds / WINDOWS_MAX)


def soak(
    system: SoakSystem, texts: Sequence[str], rate: float, seconds: float, on_progress: OnProgress
) -> SoakRun:
    """Run statements at a steady rate, each in its own commit.

    Raises:
        LivevecError: a server refused, or the system has ended.
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


def _execute(table: LoadTable, statement: Statement) -> None:
    if statement.kind == "insert":
        table.execute(f"INSERT INTO {table.name} VALUES (%s, %s)", (statement.id, statement.text))
    elif statement.kind == "update":
        table.execute(f"UPDATE {table.name} SET body = %s WHERE id = %s", (statement.text, statement.id))
    else:
        table.execute(f"DELETE FROM {table.name} WHERE id = %s", (statement.id,))


def _window(system: SoakSystem, at_s: float, latencies_s: list[float]) -> SoakWindow:
    arrived_s = [latency.total_s for latency in system.arrived()]
    latencies_s += arrived_s
    percentiles = percentiles_ms(arrived_s)
    return SoakWindow(
        at_s=round(at_s, 1),
        p50_ms=percentiles.p50,
        p95_ms=percentiles.p95,
        p99_ms=percentiles.p99,
        max_ms=percentiles.max,
        count=percentiles.count,
        rss_mb=system.rss_mb(),
        queue_changes=system.queued(),
    )


def soak_report(seconds: float, rate: float, target_ms: float, run: SoakRun, lost: int) -> SoakReport:
    """Sum up a run over its windows."""
    windows = list(run.windows)
    return SoakReport(
        seconds=seconds,
        rate=rate,
        target_ms=target_ms,
        inserts=run.statements["insert"],
        updates=run.statements["update"],
        deletes=run.statements["delete"],
        live_ms=percentiles_ms(run.latencies_s),
        rss_mb_first=windows[0].rss_mb,
        rss_mb_max=max(window.rss_mb for window in windows),
        rss_mb_last=windows[-1].rss_mb,
        queue_changes_max=max(window.queue_changes for window in windows),
        lost=lost,
        windows=windows,
    )

"""Measuring latency, commit to searchable: systems take turns under the same load, so that none disturbs another."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from daemon.bench.load import LoadRow, LoadTable
from daemon.errors import LivevecError

WARM_UP_ROWS = 200
_BLOCK_S = 2.0
_BLOCK_ROWS_MIN = 20
_ARRIVAL_TIMEOUT_S = 60.0
_ARRIVAL_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Latency:
    """One row's time from its commit until Redis acknowledged it, and its stages where they are known; seconds.

    `committed_at_s`: by the wall clock; 0 where the system does not tell.
    """

    id: str
    total_s: float
    stages_s: Mapping[str, float]
    committed_at_s: float = 0.0


class MeasuredSystem(Protocol):
    """A system that makes the rows of one table searchable."""

    name: str
    table: LoadTable

    def arrived(self) -> Sequence[Latency]:
        """Return the rows that became searchable since the last call.

        Raises:
            LivevecError: the system has ended.
        """
        ...


OnProgress = Callable[[str, int, int], None]
"""(what, rows done, rows in all)"""


def measure(
    systems: Sequence[MeasuredSystem], rows: Sequence[LoadRow], rate: float, on_progress: OnProgress
) -> dict[str, list[Latency]]:
    """Send `rows` through every system, in blocks that take turns; return each system's latencies by its name.

    The ids of the rows count up. The first WARM_UP_ROWS (or a fifth of all, where that is less) are not counted.

    Raises:
        LivevecError: rows did not become searchable.
    """
    warm_up = warm_up_rows(len(rows))
    done, total = 0, len(rows) * len(systems)
    counted: dict[str, list[Latency]] = {system.name: [] for system in systems}

    def on_insert(count: int) -> None:
        on_progress("rows", done + count, total)

    for number, block in enumerate(blocks(rows, warm_up, rate)):
        # The system that goes first alternates too.
        for system in systems if number % 2 == 0 else systems[::-1]:
            latencies = _run(system, block, rate, on_insert)
            done += len(block)
            if block[0].id - rows[0].id >= warm_up:
                counted[system.name] += latencies
    return counted


def warm_up_rows(rows: int) -> int:
    """Return how many of so many rows only warm a system up."""
    return min(WARM_UP_ROWS, rows // 5)


def blocks(rows: Sequence[LoadRow], warm_up: int, rate: float) -> list[Sequence[LoadRow]]:
    """Split the rows into blocks of about two seconds; none holds both warm-up and counted rows."""
    size = max(_BLOCK_ROWS_MIN, round(rate * _BLOCK_S))
    edges = [*range(0, warm_up, size), *range(warm_up, len(rows), size), len(rows)]
    return [rows[start:end] for start, end in pairwise(edges) if start < end]


def _run(
    system: MeasuredSystem, block: Sequence[LoadRow], rate: float, on_insert: Callable[[int], None]
) -> list[Latency]:
    """Insert one block, and wait until all of it is searchable."""
    system.table.insert(block, rate, on_insert)
    missing = {str(row.id) for row in block}
    latencies: list[Latency] = []
    ends_at_s = time.monotonic() + _ARRIVAL_TIMEOUT_S
    while missing:
        for latency in system.arrived():
            if latency.id in missing:
                missing.discard(latency.id)
                latencies.append(latency)
        if missing and time.monotonic() > ends_at_s:
            raise LivevecError(
                f"{len(missing)} of {len(block)} rows did not become searchable through {system.name} within "
                f"{_ARRIVAL_TIMEOUT_S:g} s; see `livevec status`"
            )
        time.sleep(_ARRIVAL_POLL_S)
    return latencies

"""Percentiles of latencies."""

from collections.abc import Sequence
from dataclasses import dataclass

STAGES = ("capture", "transit", "queue", "embed", "upsert")
"""The stages from commit to searchable, in their order."""


@dataclass(frozen=True)
class Percentiles:
    """Percentiles by nearest rank, without interpolation; all 0 where nothing was measured."""

    p50: float
    p95: float
    p99: float
    max: float
    count: int

    def figures(self) -> tuple[str, str, str, str]:
        """Return p50, p95, p99 and max as a table shows them."""
        return f"{self.p50:.1f}", f"{self.p95:.1f}", f"{self.p99:.1f}", f"{self.max:.1f}"


def percentiles_ms(values_s: Sequence[float]) -> Percentiles:
    """Return the percentiles, in milliseconds, of times in seconds."""
    ordered = sorted(values_s)

    def rank(percent: int) -> float:
        return round(1000 * ordered[-(-percent * len(ordered) // 100) - 1], 3) if ordered else 0.0

    return Percentiles(rank(50), rank(95), rank(99), rank(100), len(ordered))

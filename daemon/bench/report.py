"""The result of a latency measurement."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.bench.latency import Latency
from daemon.bench.percentiles import STAGES, Percentiles, percentiles_ms


@dataclass(frozen=True)
class StagePercentiles:
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Ratio:
    """livevec's percentile over the floor's."""

    p50: float
    p99: float


@dataclass(frozen=True)
class LatencyReport:
    """`floor_ms` and `ratio` are None where the floor was not measured; all else is in milliseconds."""

    rate: float
    rows: int
    livevec_ms: Percentiles
    floor_ms: Percentiles | None
    ratio: Ratio | None
    stages_ms: dict[str, StagePercentiles]


def latency_report(
    rate: float, rows: int, livevec: Sequence[Latency], floor: Sequence[Latency] | None
) -> LatencyReport:
    """Percentiles of both, and their ratio."""
    ours = percentiles_ms([one.total_s for one in livevec])
    theirs = None if floor is None else percentiles_ms([one.total_s for one in floor])
    stages = {stage: percentiles_ms([one.stages_s[stage] for one in livevec]) for stage in STAGES}
    return LatencyReport(
        rate=rate,
        rows=rows,
        livevec_ms=ours,
        floor_ms=theirs,
        ratio=None if theirs is None else Ratio(_over(ours.p50, theirs.p50), _over(ours.p99, theirs.p99)),
        stages_ms={name: StagePercentiles(found.p50, found.p95, found.p99) for name, found in stages.items()},
    )


def _over(ours: float, theirs: float) -> float:
    return round(ours / theirs, 3) if theirs else 0.0

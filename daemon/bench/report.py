"""What the measurements report: the results as they are printed and written as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.bench.latency import Latency
from daemon.bench.percentiles import STAGES, Percentiles, percentiles_ms
from daemon.bench.throughput import Bulk


@dataclass(frozen=True)
class StagePercentiles:
    """Percentiles of one stage of the way from commit to searchable."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Ratio:
    """livevec's percentile divided by the floor's."""

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


@dataclass(frozen=True)
class LatencyReports:
    """One report for each rate."""

    rates: list[LatencyReport]


@dataclass(frozen=True)
class ThroughputReport:
    """`ratio`: livevec's speed divided by the ceiling's; `floor_ratio`: by the floor's."""

    rows: int
    tokens: int
    texts_per_s: float
    floor_texts_per_s: float
    ceiling_texts_per_s: float
    ratio: float
    floor_ratio: float
    daemon_cpu_ms_per_change: float


def latency_report(
    rate: float, rows: int, livevec: Sequence[Latency], floor: Sequence[Latency] | None
) -> LatencyReport:
    """Return the percentiles of both systems, and their ratio."""
    ours = percentiles_ms([latency.total_s for latency in livevec])
    theirs = None if floor is None else percentiles_ms([latency.total_s for latency in floor])
    stages = {stage: percentiles_ms([latency.stages_s[stage] for latency in livevec]) for stage in STAGES}
    return LatencyReport(
        rate=rate,
        rows=rows,
        livevec_ms=ours,
        floor_ms=theirs,
        ratio=None if theirs is None else Ratio(_ratio(ours.p50, theirs.p50), _ratio(ours.p99, theirs.p99)),
        stages_ms={stage: StagePercentiles(part.p50, part.p95, part.p99) for stage, part in stages.items()},
    )


def throughput_report(
    tokens: int, livevec: Bulk, floor: Bulk, ceiling_texts_per_s: float
) -> ThroughputReport:
    """Return the speeds of one COPY of the same texts, and their ratios."""
    ours, theirs = livevec.changes / livevec.seconds, floor.changes / floor.seconds
    return ThroughputReport(
        rows=livevec.changes,
        tokens=tokens,
        texts_per_s=round(ours, 1),
        floor_texts_per_s=round(theirs, 1),
        ceiling_texts_per_s=round(ceiling_texts_per_s, 1),
        ratio=_ratio(ours, ceiling_texts_per_s),
        floor_ratio=_ratio(ours, theirs),
        daemon_cpu_ms_per_change=livevec.cpu_ms_per_change,
    )


def _ratio(ours: float, theirs: float) -> float:
    return round(ours / theirs, 3) if theirs else 0.0

"""Results of measurements, as they are written."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.bench.bulk import Bulk
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


@dataclass(frozen=True)
class ThroughputReport:
    """`ratio`: livevec's speed over the ceiling's; `floor_ratio`: over the floor's."""

    rows: int
    tokens: int
    texts_per_s: float
    floor_texts_per_s: float
    ceiling_texts_per_s: float
    ratio: float
    floor_ratio: float
    daemon_cpu_ms_per_change: float


@dataclass(frozen=True)
class SkipReport:
    """`changes_per_s_per_core`: were the daemon's CPU the only limit; 0 where it took less than a clock tick."""

    rows: int
    changes_per_s: float
    daemon_cpu_ms_per_change: float
    changes_per_s_per_core: float
    guard_us_per_write: float


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


def throughput_report(
    tokens: int, livevec: Bulk, floor: Bulk, ceiling_texts_per_s: float
) -> ThroughputReport:
    """Speeds of one COPY of the same texts, and their ratios."""
    ours, theirs = livevec.changes / livevec.seconds, floor.changes / floor.seconds
    return ThroughputReport(
        rows=livevec.changes,
        tokens=tokens,
        texts_per_s=round(ours, 1),
        floor_texts_per_s=round(theirs, 1),
        ceiling_texts_per_s=round(ceiling_texts_per_s, 1),
        ratio=_over(ours, ceiling_texts_per_s),
        floor_ratio=_over(ours, theirs),
        daemon_cpu_ms_per_change=_cpu_ms(livevec),
    )


def skip_report(skipped: Bulk, guard_us_per_write: float) -> SkipReport:
    """Speed and CPU of changes that changed nothing."""
    return SkipReport(
        rows=skipped.changes,
        changes_per_s=round(skipped.changes / skipped.seconds, 1),
        daemon_cpu_ms_per_change=_cpu_ms(skipped),
        changes_per_s_per_core=round(skipped.changes / skipped.cpu_s, 1) if skipped.cpu_s else 0.0,
        guard_us_per_write=round(guard_us_per_write, 2),
    )


def _cpu_ms(bulk: Bulk) -> float:
    return round(1000 * bulk.cpu_s / bulk.changes, 4)


def _over(ours: float, theirs: float) -> float:
    return round(ours / theirs, 3) if theirs else 0.0

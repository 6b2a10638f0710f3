"""Results of measurements, as they are written."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.bench.lag import LagSample
from daemon.bench.latency import Latency
from daemon.bench.percentiles import STAGES, Percentiles, percentiles_ms
from daemon.bench.policies import PolicyReport
from daemon.bench.soak import SoakRun, SoakWindow
from daemon.bench.throughput import Bulk


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
class LatencyReports:
    """One for each rate."""

    rates: list[LatencyReport]


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


@dataclass(frozen=True)
class PoliciesReport:
    """Of each policy, and what all had in common."""

    rate: float
    seconds: float
    slow_factor: float
    slow_s: float
    target_ms: float
    tokens: int
    fixed: PolicyReport
    aimd: PolicyReport
    deadline: PolicyReport


@dataclass(frozen=True)
class SoakReport:
    """`rss_mb_first`: at the end of the first window. `lost`: changes of which the index does not know at the end."""

    seconds: float
    rate: float
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


@dataclass(frozen=True)
class LagReport:
    """`changes`: that waited when the daemon was started; `done` of them are searchable after `seconds`."""

    changes: int
    tokens: int
    record_bytes: int
    seconds: float
    done: int
    rss_mb_first: float
    rss_mb_max: float
    queue_changes_max: int
    samples: list[LagSample]


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


def soak_report(seconds: float, rate: float, run: SoakRun, lost: int) -> SoakReport:
    windows = list(run.windows)
    return SoakReport(
        seconds=seconds,
        rate=rate,
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


def lag_report(
    changes: int, tokens: int, record_bytes: int, done: int, samples: list[LagSample]
) -> LagReport:
    return LagReport(
        changes=changes,
        tokens=tokens,
        record_bytes=record_bytes,
        seconds=samples[-1].at_s,
        done=done,
        rss_mb_first=samples[0].rss_mb,
        rss_mb_max=max(sample.rss_mb for sample in samples),
        queue_changes_max=max(sample.queue_changes for sample in samples),
        samples=samples,
    )


def _cpu_ms(bulk: Bulk) -> float:
    return round(1000 * bulk.cpu_s / bulk.changes, 4)


def _over(ours: float, theirs: float) -> float:
    return round(ours / theirs, 3) if theirs else 0.0

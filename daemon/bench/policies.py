"""Measures batching policies: the same arrivals for each, with an embedder that is slowed down in the middle."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.bench.latency import Latency, OnProgress
from daemon.bench.load import Arrival, LoadRow, Table
from daemon.bench.percentiles import Percentiles, percentiles_ms
from daemon.bench.slow_embedder import SlowDown
from daemon.bench.throughput import Stalled, wait_for

SEED = 20_261_125
_CALM_S = 1.0
_SAME_BATCH_S = 50e-6


class PolicySystem(Protocol):
    name: str
    table: Table

    def arrived(self) -> Sequence[Latency]: ...

    def acknowledged(self) -> int: ...


@dataclass(frozen=True)
class Plan:
    """One run: `arrivals` last `seconds`, and from `slow_from_s` on the embedder is slow for `slow_s`."""

    arrivals: Sequence[Arrival]
    seconds: float
    slow_s: float
    factor: float

    @property
    def slow_from_s(self) -> float:
        return (self.seconds - self.slow_s) / 2


@dataclass(frozen=True)
class PolicyRun:
    """What one policy did, by the wall clock.

    Attributes:
        rows: of the plan; those of `samples` became searchable.
        slow_began_s, slow_ended_s: of the slow-down.
    """

    policy: str
    rows: int
    samples: Sequence[Latency]
    slow_began_s: float
    slow_ended_s: float


@dataclass(frozen=True)
class PolicyReport:
    """`over_target`: rows later than the target; `over_target_ms_sum`: how much later, all together.

    `recovery_s`: from the slow-down's end until rows committed within a whole second met the target; None: never.
    """

    over_target: int
    over_target_ms_sum: float
    p50_ms: float
    p99_ms: float
    slow_ms: Percentiles
    recovery_s: float | None
    lost: int
    rows: int
    searchable: int
    batches: int


@dataclass(frozen=True)
class Batch:
    """Rows that were embedded together. `latency_s`: of its oldest row."""

    embedded_at_s: float
    size: int
    latency_s: float


def replay(
    policy: str,
    system: PolicySystem,
    slow_down: Callable[[SlowDown | None], None],
    warm_up: Sequence[LoadRow],
    plan: Plan,
    on_progress: OnProgress,
) -> PolicyRun:
    """Insert the warm-up rows, which do not count, then the plan's arrivals; wait until all are searchable.

    Args:
        slow_down: tells the embedder when it is slow.

    Raises:
        LivevecError: a part refused.
    """
    rate = len(plan.arrivals) / plan.seconds
    system.table.insert(warm_up, rate, lambda _: None)
    wait_for(system.acknowledged, len(warm_up), "warm-up", lambda *_: None)
    system.arrived()
    now_s, wall_s = time.monotonic(), time.time()
    begins_s, ends_s = plan.slow_from_s, plan.slow_from_s + plan.slow_s
    slow_down(SlowDown(plan.factor, now_s + begins_s, now_s + ends_s))
    rows = len(plan.arrivals)
    system.table.replay(plan.arrivals, lambda done: on_progress(policy, done, rows))
    # What never comes is counted as lost, which says more than an error.
    with contextlib.suppress(Stalled):
        wait_for(system.acknowledged, len(warm_up) + rows, policy, lambda *_: None)
    slow_down(None)
    return PolicyRun(policy, rows, system.arrived(), wall_s + begins_s, wall_s + ends_s)


def policy_report(run: PolicyRun, target_s: float, lost: int) -> PolicyReport:
    totals = [sample.total_s for sample in run.samples]
    over = [total_s - target_s for total_s in totals if total_s > target_s]
    everything = percentiles_ms(totals)
    slow = [
        sample.total_s
        for sample in run.samples
        if run.slow_began_s <= sample.committed_at_s < run.slow_ended_s
    ]
    return PolicyReport(
        over_target=len(over),
        over_target_ms_sum=round(1000 * sum(over), 1),
        p50_ms=everything.p50,
        p99_ms=everything.p99,
        slow_ms=percentiles_ms(slow),
        recovery_s=recovery_s(run.samples, run.slow_ended_s, target_s),
        lost=lost,
        rows=run.rows,
        searchable=len(totals),
        batches=len(batches(run.samples)),
    )


def recovery_s(samples: Sequence[Latency], ended_at_s: float, target_s: float) -> float | None:
    """See `PolicyReport`. Rows are judged by when they were committed: a backlog that stands still is no calm."""
    after = sorted(
        (sample.committed_at_s, sample.total_s) for sample in samples if sample.committed_at_s >= ended_at_s
    )
    calm_since_s: float | None = None
    for committed_at_s, total_s in after:
        if total_s > target_s:
            calm_since_s = None
        elif calm_since_s is None:
            calm_since_s = committed_at_s
        elif committed_at_s - calm_since_s >= _CALM_S:
            break
    return None if calm_since_s is None else round(calm_since_s - ended_at_s, 3)


def batches(samples: Sequence[Latency]) -> list[Batch]:
    """The batches that rows went in, by the moment at which they were embedded: it is one for all of a batch."""
    ordered = sorted(
        (sample.committed_at_s + sample.total_s - sample.stages_s["upsert"], sample.total_s)
        for sample in samples
    )
    found: list[Batch] = []
    for embedded_at_s, total_s in ordered:
        last = found[-1] if found else None
        if last is not None and embedded_at_s - last.embedded_at_s < _SAME_BATCH_S:
            found[-1] = Batch(last.embedded_at_s, last.size + 1, max(last.latency_s, total_s))
        else:
            found.append(Batch(embedded_at_s, 1, total_s))
    return found

"""Comparing batching policies: the same arrivals for each, with an embedder that is slow in the middle."""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.bench.latency import Latency, OnProgress
from daemon.bench.load import Arrival, LoadRow, LoadTable
from daemon.bench.percentiles import Percentiles, percentiles_ms
from daemon.bench.throughput import Stalled, wait_for
from daemon.cli.bench.setting import NAME, Setting
from daemon.settings import Config
from tests.bench.slow_embedder import SlowDown

SEED = 20_261_125
TABLES = {policy: f"{NAME}_{policy}" for policy in ("fixed", "aimd", "deadline")}
"""The table of each policy."""
_MOMENT_S = 0.5
_CALM_S = 1.0
_SAME_BATCH_S = 50e-6


class PolicySystem(Protocol):
    """A system that is measured with one policy."""

    name: str
    table: LoadTable

    def arrived(self) -> Sequence[Latency]: ...

    def acknowledged(self) -> int: ...


@dataclass(frozen=True)
class LoadPlan:
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
        rows: how many the plan has; those of `samples` became searchable.
        slow_began_s, slow_ended_s: the times of the slow-down.
    """

    policy: str
    rows: int
    samples: Sequence[Latency]
    slow_began_s: float
    slow_ended_s: float


@dataclass(frozen=True)
class Moment:
    """Half a second of a run. A value is None where no row was committed, or no batch embedded, in it.

    Attributes:
        at_s: its middle, from the first commit on.
        latency_ms_max: of the rows that were committed in it.
        batch_size_max, batch_latency_ms_p99: of the batches that were embedded in it.
    """

    at_s: float
    latency_ms_max: float | None
    batch_size_max: float | None
    batch_latency_ms_p99: float | None


@dataclass(frozen=True)
class PolicyReport:
    """What one policy did.

    Attributes:
        over_target: rows that were later than the target.
        over_target_ms_sum: how much later they were, all together.
        recovery_s: from the slow-down's end until rows committed within a whole second met the target; None: never.
        slow_began_s, slow_ended_s: from the first commit on.
        moments: the run over time.
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
    slow_began_s: float
    slow_ended_s: float
    moments: list[Moment]


@dataclass(frozen=True)
class PoliciesReport:
    """The report of each policy, and what all of them had in common."""

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
class Batch:
    """Rows that were embedded together. `latency_s` is that of the oldest."""

    embedded_at_s: float
    size: int
    latency_s: float


def random_arrivals(rows: Sequence[LoadRow], rate: float, seed: int) -> list[Arrival]:
    """Return a Poisson process, as many independent clients would insert; the same for a seed."""
    draw = random.Random(seed)
    at_s = 0.0
    arrivals = []
    for row in rows:
        arrivals.append(Arrival(at_s, row))
        at_s += draw.expovariate(rate)
    return arrivals


def daemon_config(setting: Setting, policy: str, embedder_url: str) -> Config:
    """Return the configuration of a daemon with that policy and that embedder, on the policy's own table."""
    pipeline = next(pipeline for pipeline in setting.config.pipelines if pipeline.name == TABLES[policy])
    config = setting.daemon(pipeline)
    return config.model_copy(
        update={
            "batching": config.batching.model_copy(update={"policy": policy}),
            "embedding": config.embedding.model_copy(update={"url": embedder_url}),
        }
    )


def replay(
    policy: str,
    system: PolicySystem,
    slow_down: Callable[[SlowDown | None], None],
    warm_up: Sequence[LoadRow],
    plan: LoadPlan,
    on_progress: OnProgress,
) -> PolicyRun:
    """Insert the warm-up rows, which do not count, then the plan's arrivals; wait until all are searchable.

    Args:
        slow_down: sets when the embedder is slow.

    Raises:
        LivevecError: a server refused.
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
    # A row that never arrives is counted as lost, which says more than an error.
    with contextlib.suppress(Stalled):
        wait_for(system.acknowledged, len(warm_up) + rows, policy, lambda *_: None)
    slow_down(None)
    return PolicyRun(policy, rows, system.arrived(), wall_s + begins_s, wall_s + ends_s)


def policy_report(run: PolicyRun, target_s: float, lost: int) -> PolicyReport:
    """Judge a run by the target."""
    totals = [sample.total_s for sample in run.samples]
    over = [total_s - target_s for total_s in totals if total_s > target_s]
    everything = percentiles_ms(totals)
    began_s = min((sample.committed_at_s for sample in run.samples), default=run.slow_began_s)
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
        slow_began_s=round(run.slow_began_s - began_s, 3),
        slow_ended_s=round(run.slow_ended_s - began_s, 3),
        moments=moments(run.samples, began_s),
    )


def recovery_s(samples: Sequence[Latency], ended_at_s: float, target_s: float) -> float | None:
    """Return `PolicyReport.recovery_s`.

    Rows are judged by when they were committed: a backlog that stands still is no recovery.
    """
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
    """Return the batches of the rows, by the time at which they were embedded: it is the same for all of a batch."""
    ordered = sorted(
        (sample.committed_at_s + sample.total_s - sample.stages_s["upsert"], sample.total_s)
        for sample in samples
    )
    result: list[Batch] = []
    for embedded_at_s, total_s in ordered:
        last = result[-1] if result else None
        if last is not None and embedded_at_s - last.embedded_at_s < _SAME_BATCH_S:
            result[-1] = Batch(last.embedded_at_s, last.size + 1, max(last.latency_s, total_s))
        else:
            result.append(Batch(embedded_at_s, 1, total_s))
    return result


def moments(samples: Sequence[Latency], began_s: float) -> list[Moment]:
    """Return the run in steps of half a second; steps without a commit and without a batch are left out."""
    latencies: dict[int, list[float]] = {}
    for sample in samples:
        latencies.setdefault(_moment(sample.committed_at_s - began_s), []).append(sample.total_s)
    embedded: dict[int, list[Batch]] = {}
    for batch in batches(samples):
        embedded.setdefault(_moment(batch.embedded_at_s - began_s), []).append(batch)
    result = []
    for number in sorted(latencies.keys() | embedded.keys()):
        committed, together = latencies.get(number, []), embedded.get(number, [])
        result.append(
            Moment(
                at_s=(number + 0.5) * _MOMENT_S,
                latency_ms_max=percentiles_ms(committed).max if committed else None,
                batch_size_max=max((batch.size for batch in together), default=None),
                batch_latency_ms_p99=(
                    percentiles_ms([batch.latency_s for batch in together]).p99 if together else None
                ),
            )
        )
    return result


def _moment(at_s: float) -> int:
    return int(at_s / _MOMENT_S)

"""Live changes beside a backfill at full speed, through a worker and Temporal: what each costs the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.bench.latency import Latency
from daemon.bench.percentiles import Percentiles, percentiles_ms


@dataclass(frozen=True, slots=True)
class Sighting:
    """How many rows a backfill had done at a time of the wall clock."""

    at_s: float
    rows: int


@dataclass(frozen=True)
class MixedReport:
    """What was measured: live latencies in milliseconds, speeds in texts a second.

    Attributes:
        live_ms: of changes committed while the backfill ran.
        live_alone_ms: of the same load before it.
        ratio: the backfill's speed beside live changes over its speed alone (twice, before and after).
        ceiling_texts_per_s: the embedder alone with the same texts.
        ceiling_ratio: the backfill's speed alone over that.
    """

    rows: int
    tokens: int
    live_rate: float
    live_ms: Percentiles
    live_alone_ms: Percentiles
    backfill_texts_per_s: float
    backfill_alone_texts_per_s: float
    ratio: float
    ceiling_texts_per_s: float
    ceiling_ratio: float


def speed(sightings: Sequence[Sighting]) -> float:
    """Return the rows a second from the first sighting with rows to the first with all rows; 0 where both are one.

    What follows in a backfill, the floor and the sweep, moves no rows.
    """
    last = max((sighting.rows for sighting in sightings), default=0)
    ended_s = next((sighting.at_s for sighting in sightings if sighting.rows == last), 0.0)
    moving = [sighting for sighting in sightings if sighting.rows > 0 and sighting.at_s <= ended_s]
    if len(moving) < 2 or moving[-1].at_s <= moving[0].at_s:
        return 0.0
    return (moving[-1].rows - moving[0].rows) / (moving[-1].at_s - moving[0].at_s)


def during(latencies: Sequence[Latency], began_s: float, ended_s: float) -> Percentiles:
    """Return the percentiles of the changes that were committed in that time."""
    return percentiles_ms(
        [latency.total_s for latency in latencies if began_s <= latency.committed_at_s <= ended_s]
    )


def mixed_report(
    rows: int,
    tokens: int,
    live_rate: float,
    live: Percentiles,
    live_alone: Percentiles,
    alone: Sequence[float],
    beside: float,
    ceiling: float,
) -> MixedReport:
    """Relate the speeds to one another.

    Args:
        alone: the speeds of the backfills that ran alone.
        beside: the speed of the one beside live changes.
    """
    mean = sum(alone) / len(alone)
    return MixedReport(
        rows=rows,
        tokens=tokens,
        live_rate=live_rate,
        live_ms=live,
        live_alone_ms=live_alone,
        backfill_texts_per_s=round(beside, 1),
        backfill_alone_texts_per_s=round(mean, 1),
        ratio=round(beside / mean, 3) if mean else 0.0,
        ceiling_texts_per_s=round(ceiling, 1),
        ceiling_ratio=round(mean / ceiling, 3) if ceiling else 0.0,
    )

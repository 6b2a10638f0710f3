"""What the dispatcher does around its batches."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

from daemon.core.batching import Deadline, Finished, Limits, Waiting
from daemon.core.change import Change, Operation, Outcome
from daemon.core.progress import PartitionProgress, Receipt
from daemon.core.queue import Item
from daemon.core.version import LogVersion
from daemon.live.dispatcher import Dispatcher
from daemon.projection.projector import Processed, Projector
from daemon.telemetry.metrics import Metrics


class SoonCalm(Deadline):
    _CALM_S = 0.2


class InstantProjector:
    """Every item is done at once."""

    async def process(self, items: Sequence[Item], on_embedded: Callable[[], None]) -> Processed:
        oldest_s = min(item.change.committed_at_s for item in items)
        for item in items:
            item.outcome = Outcome.EMBEDDED
        on_embedded()
        return Processed(Finished(len(items), 14 * len(items), 0.001, 0.002, time.time() - oldest_s), [])


def late(number: int) -> Item:
    """A change that should have been searchable long ago."""
    at_s = time.time() - 60
    version = LogVersion(0, 100 + number, 100 + number, 1)
    change = Change(Operation.UPSERT, (str(number),), {}, version, 0, 1, at_s, at_s)
    waiting = Waiting(at_s, at_s + 0.1, 14)
    return Item(str(number), change, [Receipt(PartitionProgress(), number)], None, waiting, 100)


async def test_overload_ends_by_itself_also_where_no_further_change_comes() -> None:
    metrics = Metrics()
    failures: list[BaseException] = []
    dispatcher = Dispatcher(
        cast(Projector, InstantProjector()),
        SoonCalm(Limits(500, 16_384, 0.005), 0.1),
        500,
        4,
        metrics.pipeline("p"),
        lambda: None,
        failures.append,
    )

    def overloaded() -> float:
        return metrics.registry.get_sample_value("livevec_overloaded", {"pipeline": "p"}) or 0.0

    dispatcher.put([late(number) for number in range(500)])
    await dispatcher.drained()
    assert overloaded() == 1
    async with asyncio.timeout(10):
        while overloaded():  # noqa: ASYNC110 - a gauge has no event
            await asyncio.sleep(0.02)
    assert failures == []

"""What the dispatcher does around its batches."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

from daemon.core.batching import Deadline, Finished, Limits, Waiting
from daemon.core.change import Change, Operation, Outcome
from daemon.core.progress import PartitionProgress
from daemon.core.queue import Item
from daemon.core.version import LogVersion
from daemon.core.work import Work
from daemon.live.dispatcher import Dispatcher
from daemon.projection.projector import Projector
from daemon.telemetry.metrics import Metrics


class SoonCalm(Deadline):
    _CALM_S = 0.2


class InstantProjector:
    """Every work is done at once."""

    def is_hint(self, change: Change, now_s: float) -> bool:
        return False

    async def process(self, works: Sequence[Work], on_embedded: Callable[[], None]) -> Finished:
        oldest_s = min(work.change.committed_at_s for work in works if work.change is not None)
        for work in works:
            work.done(Outcome.EMBEDDED)
        on_embedded()
        return Finished(len(works), 14 * len(works), 0.001, 0.002, time.time() - oldest_s)


class Owner:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []

    def batch_ended(self) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


def late(number: int) -> Item:
    """A change that should have been searchable long ago."""
    at_s = time.time() - 60
    version = LogVersion(0, 100 + number, 100 + number, 1)
    change = Change(Operation.UPSERT, (str(number),), {}, version, 0, 1, at_s, at_s)
    waiting = Waiting(at_s, at_s + 0.1, 14)
    return Item(str(number), change, [PartitionProgress().read(number)], None, waiting, 100)


async def test_overload_ends_by_itself_also_where_no_further_change_comes() -> None:
    metrics = Metrics()
    owner = Owner()
    dispatcher = Dispatcher(
        cast(Projector, InstantProjector()),
        SoonCalm(Limits(500, 16_384, 0.005), 0.1),
        500,
        4,
        metrics.pipeline("p"),
        owner,
    )

    def overloaded() -> float:
        return metrics.registry.get_sample_value("livevec_overloaded", {"pipeline": "p"}) or 0.0

    for number in range(500):
        dispatcher.put(late(number))
    dispatcher.pump()
    await dispatcher.drained()
    assert overloaded() == 1
    async with asyncio.timeout(10):
        while overloaded():  # noqa: ASYNC110 - a gauge has no event
            await asyncio.sleep(0.02)
    assert owner.failures == []

"""The slow lane: rows of backfills, reindexing and repairs on their way into the index, beside the live changes.

Live and slow requests share one embedder, which answers in the order of arrival. So the lane keeps few and small
requests there: a live batch waits for what is ahead of it, at most `requests_max` requests of `request_ms_max`
each, and the lane, which is asked in turn, always gets its share. The size follows the learned cost of a request.
While live changes load the machine a request costs more, and the lane's requests become smaller by themselves.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from daemon.core.batching import CostModel
from daemon.core.change import Outcome
from daemon.core.document import DocumentBuilder
from daemon.core.queue import tokens_estimate
from daemon.pipeline import Projector, SourceRow
from daemon.settings import SlowLaneSettings

_ROWS_MIN = 4
"""A part is never smaller, however slow the embedder is: the fixed cost of a request would be all of it."""
_ROWS_MAX = 256


class EmbedderShare:
    """What all slow lanes of one process may have at the embedder at once."""

    def __init__(self, settings: SlowLaneSettings) -> None:
        self.requests = asyncio.Semaphore(settings.requests_max)
        self.parts = asyncio.Semaphore(settings.parts_in_flight_max)


class SlowLane:
    """Brings documents up to date with rows that were read from the source, at low priority.

    Args:
        projector: of the pipeline's index version.
        builder: of its documents.
        settings: see `SlowLaneSettings`.
        share: of the process.
    """

    def __init__(
        self, projector: Projector, builder: DocumentBuilder, settings: SlowLaneSettings, share: EmbedderShare
    ) -> None:
        self.rate_rows_s: float | None = None
        """Most rows a second; None: as many as there can be. May be set at any time."""
        self._projector = projector
        self._builder = builder
        self._request_s_max = settings.request_ms_max / 1000
        self._share = share
        self._cost = CostModel()
        self._next_at_s = 0.0

    async def project(self, rows: Sequence[SourceRow], rewrite: Collection[str] = ()) -> Counter[Outcome]:
        """Returns when every row's effect is acknowledged by Redis; see `Projector.project`.

        Raises:
            StopProcess: a part is set up wrongly.
            RetryLater: a part stayed away for longer than the projector's patience.
        """
        outcomes: Counter[Outcome] = Counter()
        running: set[asyncio.Task[Counter[Outcome]]] = set()
        try:
            rest = rows
            while rest:
                await self._share.parts.acquire()
                # Sized now, not before: the cost of a request is what it was a moment ago.
                size = self._part_size(rest)
                part, rest = rest[:size], rest[size:]
                task = asyncio.ensure_future(self._one(part, rewrite))
                running.add(task)
                task.add_done_callback(lambda _: self._share.parts.release())
                for done in [task for task in running if task.done()]:
                    running.discard(done)
                    outcomes += done.result()
            while running:
                done_now, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for done in done_now:
                    outcomes += done.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return outcomes

    async def _one(self, rows: Sequence[SourceRow], rewrite: Collection[str]) -> Counter[Outcome]:
        await self._throttle(len(rows))
        await self._share.requests.acquire()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._share.requests.release()

        try:
            projected = await self._projector.project(rows, rewrite, on_embedded=release)
        finally:
            release()
        finished = projected.finished
        if finished.texts:
            self._cost.observe(finished.tokens, finished.embed_s)
        return projected.outcomes

    async def _throttle(self, rows: int) -> None:
        rate = self.rate_rows_s
        if rate is None:
            return
        loop = asyncio.get_running_loop()
        begin_s = max(self._next_at_s, loop.time())
        self._next_at_s = begin_s + rows / rate
        await asyncio.sleep(begin_s - loop.time())

    def _part_size(self, rows: Sequence[SourceRow]) -> int:
        """How many of the rows one request takes within its time."""
        count_max = _ROWS_MAX
        if self.rate_rows_s is not None:
            count_max = max(1, min(count_max, int(self.rate_rows_s)))
        tokens_max = (self._request_s_max - self._cost.fixed_s) / self._cost.token_s
        tokens = 0
        for count, size in enumerate(self._tokens(rows[:count_max])):
            tokens += size
            if tokens > tokens_max and count >= min(_ROWS_MIN, count_max):
                return count
        return min(len(rows), count_max)

    def _tokens(self, rows: Sequence[SourceRow]) -> Iterator[int]:
        return (0 if row is None else tokens_estimate(self._builder.text_size(row)) for _, _, row in rows)

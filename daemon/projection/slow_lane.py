"""The slow lane: rows of backfills, reindexing and repairs on their way into the index, beside the live changes.

Live and slow requests share one embedder, which answers in the order of arrival. So the lane keeps few and small
requests there: a live batch waits for what is ahead of it, and the lane, which is asked in turn, always gets its
share. While a daemon says that live changes are made, there is one request at a time, and a shorter one.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from daemon.core.change import Outcome
from daemon.core.document import DocumentBuilder
from daemon.core.queue import tokens_estimate
from daemon.errors import RetryLater
from daemon.index.connection import Client, translated
from daemon.index.layout import LIVE_KEY
from daemon.projection.projector import Projector, SourceRow
from daemon.settings import SlowLaneSettings

_ROWS_MIN = 4
"""A part is never smaller, however slow the embedder is: the fixed cost of a request would be all of it."""
_ROWS_MAX = 256
_TOKENS_FIRST = 512
_LOOK_S = 0.1
_ABOUT_MS = 2_000


class EmbedderShare:
    """What all slow lanes of one process may have at the embedder at once."""

    def __init__(self, settings: SlowLaneSettings) -> None:
        self.parts = asyncio.Semaphore(settings.parts_in_flight_max)
        self._settings = settings
        self._live = False
        self._looked_at_s = 0.0
        self._running = 0
        self._left = asyncio.Event()

    @property
    def request_s_max(self) -> float:
        """The longest that a request may take now."""
        settings = self._settings
        return (settings.live_request_ms_max if self._live else settings.request_ms_max) / 1000

    async def enter(self, client: Client) -> None:
        """Wait for a place at the embedder."""
        while self._running >= (1 if self._live else self._settings.requests_max):
            self._left.clear()
            await self._left.wait()
        self._running += 1
        now_s = time.monotonic()
        if now_s - self._looked_at_s > _LOOK_S:
            self._looked_at_s = now_s
            try:
                self._live = await live_changes_are_about(client)
            except RetryLater:
                self._live = True  # not known; the look-up that follows waits for Redis
            except BaseException:
                self.leave()
                raise

    def leave(self) -> None:
        self._running -= 1
        self._left.set()

    @asynccontextmanager
    async def place(self, client: Client) -> AsyncIterator[None]:
        """A place at the embedder, for one request."""
        await self.enter(client)
        try:
            yield
        finally:
            self.leave()


class SlowLane:
    """Brings documents up to date with rows that were read from the source, at low priority.

    Args:
        projector: of the pipeline's index version.
        builder: of its documents.
        client: of Redis.
        share: of the process.
    """

    def __init__(
        self, projector: Projector, builder: DocumentBuilder, client: Client, share: EmbedderShare
    ) -> None:
        self.rate_rows_s: float | None = None
        """Most rows a second; None: as many as there can be. May be set at any time."""
        self._projector = projector
        self._builder = builder
        self._client = client
        self._share = share
        self._token_s = share.request_s_max / _TOKENS_FIRST
        self._next_at_s = 0.0

    async def project(self, rows: Sequence[SourceRow], rewrite: Collection[str] = ()) -> Counter[Outcome]:
        """Project rows, and return once every row's effect is acknowledged by Redis; see `Projector.project`.

        Raises:
            StopProcess: a part is set up wrongly.
            RetryLater: a part stayed away for longer than the projector's patience.
        """
        outcomes: Counter[Outcome] = Counter()
        running: set[asyncio.Task[Counter[Outcome]]] = set()
        try:
            waiting = rows
            while waiting:
                await self._share.parts.acquire()
                # Sized now, not before: what a request may take is what it was a moment ago.
                size = self._part_size(waiting)
                part, waiting = waiting[:size], waiting[size:]
                task = asyncio.ensure_future(self._project_part(part, rewrite))
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

    async def _project_part(self, rows: Sequence[SourceRow], rewrite: Collection[str]) -> Counter[Outcome]:
        await self._throttle(len(rows))
        await self._share.enter(self._client)
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self._share.leave()

        try:
            outcomes, finished = await self._projector.project(rows, rewrite, on_embedded=leave)
        finally:
            leave()
        if finished.texts and finished.tokens:
            # Requests are all about as large as the time allows: what one token of such costs, all in all, is
            # enough to know, where a fixed cost and a slope could not be told apart.
            self._token_s += 0.2 * (
                min(finished.embed_s / finished.tokens, 3 * self._token_s) - self._token_s
            )
        return outcomes

    async def _throttle(self, rows: int) -> None:
        rate = self.rate_rows_s
        if rate is None:
            return
        loop = asyncio.get_running_loop()
        begin_s = max(self._next_at_s, loop.time())
        self._next_at_s = begin_s + rows / rate
        await asyncio.sleep(begin_s - loop.time())

    def _part_size(self, rows: Sequence[SourceRow]) -> int:
        """Return how many of the rows one request takes within its time."""
        count_max = _ROWS_MAX
        if self.rate_rows_s is not None:
            count_max = max(1, min(count_max, int(self.rate_rows_s)))
        tokens_max = self._share.request_s_max / self._token_s
        tokens = 0
        for count, size in enumerate(self._tokens(rows[:count_max])):
            tokens += size
            if tokens > tokens_max and count >= min(_ROWS_MIN, count_max):
                return count
        return min(len(rows), count_max)

    def _tokens(self, rows: Sequence[SourceRow]) -> Iterator[int]:
        return (0 if row is None else tokens_estimate(self._builder.text_size(row)) for _, _, row in rows)


async def tell_live_changes(client: Client) -> None:
    """Say that live changes are made now, for the next two seconds."""
    with translated():
        await cast(Any, client).set(LIVE_KEY, b"1", px=_ABOUT_MS)


async def live_changes_are_about(client: Client) -> bool:
    """Return whether a daemon said within the last two seconds that live changes are made."""
    with translated():
        return bool(await cast(Any, client).exists(LIVE_KEY))

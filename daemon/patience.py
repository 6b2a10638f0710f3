"""Waiting for a part that is away: with growing, jittered pauses, and visible in the health."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from daemon.errors import RetryLater
from daemon.settings import RetrySettings
from daemon.telemetry.health import Health

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """Repeats calls that fail with `RetryLater`; other failures pass through.

    Args:
        settings: how long the pauses are.
        health: shows what is waited for.
        limit_s: a part that is away for longer fails the call: somebody else waits. None: the daemon, for ever.
    """

    def __init__(self, settings: RetrySettings, health: Health, limit_s: float | None = None) -> None:
        self._min_s = settings.backoff_ms_min / 1000
        self._max_s = settings.backoff_ms_max / 1000
        self._health = health
        self._limit_s = limit_s

    async def call(self, part: str, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of `work(*args, **kwargs)`, tried until its part answers.

        Args:
            part: the name of what is called, as the health shows it: `redis`, `source shop`, `embedder minilm`.

        Raises:
            RetryLater: it was away for longer than the limit.
        """
        pause_s = self._min_s
        ends_at_s = None if self._limit_s is None else time.monotonic() + self._limit_s
        while True:
            try:
                result = await work(*args, **kwargs)
            except RetryLater as error:
                self._health.down(part, error)
                if ends_at_s is not None and time.monotonic() > ends_at_s:
                    raise
                await self.pause(max(pause_s, error.retry_after_s))
                pause_s = min(2 * pause_s, self._max_s)
            else:
                self._health.up(part)
                return result

    async def once(self, part: str, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of `work(*args, **kwargs)`, tried once; the health shows whether its part answered.

        Raises:
            RetryLater: it is away.
        """
        try:
            result = await work(*args, **kwargs)
        except RetryLater as error:
            self._health.down(part, error)
            raise
        self._health.up(part)
        return result

    async def wait_out(self, part: str, error: RetryLater) -> None:
        """Show a failure that was met outside of `call`, and pause as long as it says at least."""
        self._health.down(part, error)
        await self.pause(max(self._min_s, error.retry_after_s))

    async def pause(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

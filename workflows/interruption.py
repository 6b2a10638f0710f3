"""How an activity is asked to end early, and tells Temporal that it is alive."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from temporalio import activity

from daemon.verify.pace import Interruption

T = TypeVar("T")
_BEAT_INTERVAL_S = 1.0


async def interruptible(
    work: Callable[[Interruption], Coroutine[Any, Any, T]], beat: Callable[[], tuple[Any, ...]]
) -> T:
    """Return the result of `work`, which looks at its interruption between two steps. Heartbeats meanwhile.

    It is asked to end once the workflow cancels the activity (a pause, a throttle, a cancel), or the worker is told to
    stop; it then returns what it has done.

    Args:
        beat: what a heartbeat carries now: what another attempt goes on from, then a `Beat`.
    """
    interruption = Interruption()
    task = asyncio.ensure_future(work(interruption))
    async with heartbeating(beat), _stopping(interruption):
        while True:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise
                if interruption.asked:
                    # It had its time: a worker that stops waits no longer.
                    task.cancel()
                    await asyncio.wait({task})
                    raise
                interruption.ask()


@contextlib.asynccontextmanager
async def heartbeating(beat: Callable[[], tuple[Any, ...]]) -> AsyncIterator[None]:
    """Send heartbeats while the block runs, also while a part that is away is waited for."""

    async def go_on() -> None:
        while True:
            activity.heartbeat(*beat())
            await asyncio.sleep(_BEAT_INTERVAL_S)

    async with _beside(go_on()):
        yield


@contextlib.asynccontextmanager
async def _stopping(interruption: Interruption) -> AsyncIterator[None]:
    async def wait() -> None:
        await activity.wait_for_worker_shutdown()
        interruption.ask()

    async with _beside(wait()):
        yield


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

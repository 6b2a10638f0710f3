"""How an activity is asked to end early, and tells Temporal that it is alive."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from temporalio import activity

from daemon.verify.pace import Interruption

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
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
    async with heartbeating(beat), _beside(_until_worker_stops(interruption)):
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


def heartbeating(beat: Callable[[], tuple[Any, ...]]) -> contextlib.AbstractAsyncContextManager[None]:
    """Send heartbeats while the block runs, also while a part that is away is waited for."""
    return _beside(_heartbeats(beat))


def begun(kind: type[M]) -> M | None:
    """Return what the last heartbeat of an earlier attempt carried; None: there was none."""
    details = activity.info().heartbeat_details
    return kind.model_validate(details[0]) if details and details[0] is not None else None


async def _heartbeats(beat: Callable[[], tuple[Any, ...]]) -> None:
    while True:
        activity.heartbeat(*beat())
        await asyncio.sleep(_BEAT_INTERVAL_S)


async def _until_worker_stops(interruption: Interruption) -> None:
    await activity.wait_for_worker_shutdown()
    interruption.ask()


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

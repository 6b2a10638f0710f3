"""Ways in which workflow code waits for a part of itself."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from temporalio.exceptions import is_cancelled_exception

T = TypeVar("T")


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """The result, also where whoever waits is cancelled meanwhile: what was done must be known."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        return await task


async def ended(task: "asyncio.Task[T]") -> T | None:
    """The result of a task that is not needed any more; None: it had none yet."""
    if not task.done():
        task.cancel()
    try:
        return await task
    except BaseException as error:
        if is_cancelled_exception(error):
            return None
        raise

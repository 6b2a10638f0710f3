"""One life of the daemon: its tasks, its timers, and whether it is alive."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.shell.clock import VirtualLoop

T = TypeVar("T")
_CURRENT: "contextvars.ContextVar[Process | None]" = contextvars.ContextVar("process", default=None)
_STEPS_TO_END_MAX = 200


class Process:
    """What is run in it belongs to it, and so does all that this starts.

    A process that was killed has no effect on anything any more: no call of its passes an edge.
    """

    def __init__(self) -> None:
        self.dead = False
        self.tasks: set[asyncio.Task[Any]] = set()

    def run(self, loop: VirtualLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run this in the process."""
        loop.on_task = _note
        context = contextvars.copy_context()
        context.run(_CURRENT.set, self)
        task = loop.create_task(work, context=context)
        self.tasks.add(task)
        return task

    def check(self) -> None:
        """Raises CancelledError where the process is dead."""
        if self.dead:
            raise asyncio.CancelledError

    def die(self, loop: VirtualLoop) -> None:
        """kill -9: nothing is drained, no timer fires any more, no call is answered."""
        self.dead = True
        loop.cancel_timers(lambda context: context.get(_CURRENT) is self)
        for task in self.left():
            task.cancel()

    def left(self) -> list[asyncio.Task[Any]]:
        """Tasks that have not ended."""
        return [task for task in self.tasks if not task.done()]

    async def gone(self) -> None:
        """Wait until the tasks of a process that was killed have ended; none of them may want time for that."""
        for _ in range(_STEPS_TO_END_MAX):
            left = self.left()
            if not left:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"these did not end when they were cancelled: {left}")


def _note(task: asyncio.Task[Any]) -> None:
    if (process := _CURRENT.get()) is not None:
        process.tasks.add(task)

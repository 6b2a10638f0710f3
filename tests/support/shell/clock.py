"""An event loop on virtual time, after trio's autojump clock.

Whenever nothing is ready to run, time jumps to the next timer. `time.time` and `time.monotonic` tell the same virtual
time during a run. Where there is no timer either, all tasks wait for one another, and the run fails with their list.
"""

import asyncio
import contextvars
import inspect
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")

EPOCH_S = 1_700_000_000.0
"""The wall clock at the start of every run."""


class Deadlock(AssertionError):
    """Nothing is ready and no timer is set."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs without threads: what is handed to an executor is done at once, in the loop.

    Attributes:
        on_task: called with each task that is made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = self
        self.on_task: Callable[[asyncio.Task[Any]], None] = lambda _: None
        self.set_task_factory(self._new_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now_s

    def jump(self, seconds: float) -> None:
        """Let time pass as on a machine that was suspended: every timer that is due by then fires once, afterwards."""
        self._now_s += seconds

    def cancel_timers(self, of: Callable[[contextvars.Context], bool]) -> None:
        """Cancel the timers and callbacks that were set in such a context, those of tasks excepted."""
        for handle in list(self._scheduled):  # type: ignore[attr-defined]
            if of(handle._context):
                handle.cancel()

    # ---- the selector of this loop, which has no file to wait for

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            waiting = "\n".join(f"  {task!r}" for task in asyncio.all_tasks(self))
            raise Deadlock(f"all tasks wait for one another:\n{waiting}")
        if timeout_s > 0:
            # Not by adding: the sum may be a hair before the timer.
            self._now_s = max(self._now_s, self._scheduled[0]._when)  # type: ignore[attr-defined]
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a system call."""

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Do it at once; where it answers an awaitable, as a fake of something that blocks does, wait for that."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            result: Any = func(*args)
        except Exception as error:  # noqa: BLE001 - handed to the caller, as an executor does
            future.set_exception(error)
            return future
        if inspect.isawaitable(result):
            return asyncio.ensure_future(result, loop=self)
        future.set_result(result)
        return future

    def _new_task(
        self,
        _: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T],
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(work, loop=self, context=context)
        self.on_task(task)
        return task


@contextmanager
def virtual_time(loop: VirtualLoop) -> Iterator[None]:
    """Let the process' clocks tell the loop's time."""
    with (
        patch.object(time, "time", lambda: EPOCH_S + loop.time()),
        patch.object(time, "monotonic", loop.time),
    ):
        yield


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run on a loop of its own until `main` has returned; a task that is left then fails the run.

    Raises:
        Deadlock: nothing could go on.
        AssertionError: a task was left.
    """
    loop = VirtualLoop()
    with virtual_time(loop):
        try:
            result = loop.run_until_complete(main(loop))
            left = asyncio.all_tasks(loop)
            assert not left, "tasks were left:\n" + "\n".join(f"  {task!r}" for task in left)
            return result
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

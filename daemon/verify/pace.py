"""How long work in steps goes on, and how fast: until it is asked to end, and so many rows a second."""

import asyncio
import contextlib
import time


class Interruption:
    """Set once a step should be the last: a workflow is paused, throttled or cancelled, or its worker stops.

    A step that runs is finished, so that its work is not done twice.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        self._asked.set()

    async def wait(self, timeout_s: float) -> bool:
        """Sleep for so long, or until asked; return whether it was."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), timeout_s)
        return self.asked


class Rate:
    """Keeps to so many rows a second; None: no limit."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._next_at_s = time.monotonic()

    async def spent(self, count: int, interruption: Interruption) -> None:
        """Sleep as long as these rows should take, but not once asked to end."""
        if self._per_s is not None:
            self._next_at_s = max(self._next_at_s, time.monotonic() - 1.0) + count / self._per_s
            await interruption.wait(max(0.0, self._next_at_s - time.monotonic()))

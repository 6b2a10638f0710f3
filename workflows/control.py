"""What every workflow offers: pause, resume, throttle and progress; and activities that end early when asked to end."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError, is_cancelled_exception

from workflows.failures import RETRY
from workflows.progress import Progress, markdown
from workflows.search_attributes import PERCENT, PHASE

T = TypeVar("T")
Activity = Callable[[Any, Any], Awaitable[T]]
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""After that much silence the worker counts as dead, and another attempt goes on from the last heartbeat."""
PAUSED = "paused"
RATE_MIN = 0.1
"""Rows a second; at a lower one, a pause would have to wait too long for the present row."""


def is_rate(rate_rows_s: float) -> bool:
    """Return whether a workflow may be throttled to it; 0: no limit."""
    return rate_rows_s == 0 or RATE_MIN <= rate_rows_s < float("inf")


class Controlled:
    """Base of the workflows.

    Updates for programs, validated: `pause`, `resume`, `throttle`. Signals of the same names for people in the UI.
    Each of these cancels a long activity: it then ends with what it has done so far, and is started again from there
    when, and as fast as, it may go on. `run` raises ApplicationError where a person has to act first, and says how.
    """

    def __init__(self) -> None:
        self.is_paused = False
        self.rate: float | None = None
        self.cancelled = False
        self._changes = 0
        self._progress = Progress(phase="starting")
        self._shown: tuple[str, int | None] | None = None
        self._facts: dict[str, object] = {}

    # ---- what one asks and tells it

    @workflow.query(description="Phase, rows done, estimated total, rate, time left.")
    def progress(self) -> Progress:
        return self._progress.model_copy(update={"phase": PAUSED}) if self.is_paused else self._progress

    @workflow.update(name="pause", description="Stop reading and writing until `resume`.")
    def pause(self) -> Progress:
        self._set_paused(True)
        return self.progress()

    @pause.validator
    def _may_pause(self) -> None:
        if self.is_paused:
            raise ApplicationError("it is paused already")

    @workflow.update(name="resume", description="Go on after `pause`.")
    def resume(self) -> Progress:
        self._set_paused(False)
        return self.progress()

    @resume.validator
    def _may_resume(self) -> None:
        if not self.is_paused:
            raise ApplicationError("it is not paused")

    @workflow.update(name="throttle", description="Most rows a second; 0: as many as there can be.")
    def throttle(self, rate_rows_s: float) -> Progress:
        self._set_rate(rate_rows_s)
        return self.progress()

    @throttle.validator
    def _may_throttle(self, rate_rows_s: float) -> None:
        if not is_rate(rate_rows_s):
            raise ApplicationError(f"the rate is rows a second: at least {RATE_MIN}, or 0 for no limit")

    @workflow.signal(name="pause", description="Stop reading and writing until `resume`.")
    def pause_signal(self) -> None:
        self._set_paused(True)

    @workflow.signal(name="resume", description="Go on after `pause`.")
    def resume_signal(self) -> None:
        self._set_paused(False)

    @workflow.signal(name="throttle", description="Most rows a second; 0: as many as there can be.")
    def throttle_signal(self, rate_rows_s: float) -> None:
        if is_rate(rate_rows_s):
            self._set_rate(rate_rows_s)

    def _set_paused(self, paused: bool) -> None:
        if paused != self.is_paused:
            self.is_paused = paused
            self._changes += 1
            self._publish()

    def _set_rate(self, rate_rows_s: float) -> None:
        self.rate = rate_rows_s or None
        self._changes += 1

    # ---- what the workflows use

    def show(self, progress: Progress, **facts: object) -> None:
        """Show where it is: to the query, in the UI (current details), and, where it changed, in the list."""
        self._progress, self._facts = progress, facts
        self._publish()

    def _publish(self) -> None:
        shown = self.progress()
        workflow.set_current_details(markdown(shown, **self._facts))
        listed = (shown.phase, shown.percent)
        if listed != self._shown:
            self._shown = listed
            percent = [] if shown.percent is None else [PERCENT.value_set(shown.percent)]
            workflow.upsert_search_attributes([PHASE.value_set(shown.phase), *percent])

    async def unpaused(self) -> None:
        """Wait while it is paused."""
        await workflow.wait_condition(lambda: not self.is_paused)

    async def step(self, work: Activity[T], argument: object, limit: timedelta, summary: str) -> T:
        """Return the result of an activity that is waited for to its end."""
        return await _started(work, argument, limit, summary, workflow.ActivityCancellationType.TRY_CANCEL)

    async def slice(self, work: Activity[T], argument: object, limit: timedelta, summary: str) -> T | None:
        """Return the result of an activity that ends early when this workflow is paused, throttled or cancelled.

        It is what the activity has done so far; None: it had not begun. Note what is needed of it, then call
        `check_cancelled`.
        """
        cancellation = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
        handle = _started(work, argument, limit, summary, cancellation)
        changes = self._changes
        try:
            await workflow.wait_condition(lambda: handle.done() or self._changes != changes)
        except asyncio.CancelledError:
            self.cancelled = True
        if not handle.done():
            handle.cancel()
            try:
                await workflow.wait_condition(handle.done)
            except asyncio.CancelledError:
                # This workflow, while the activity was already ending for a pause.
                self.cancelled = True
                await workflow.wait_condition(handle.done)
        return await ended(handle)

    def check_cancelled(self) -> None:
        """Raise CancelledError where this workflow was cancelled during a `slice`."""
        if self.cancelled:
            raise asyncio.CancelledError

    async def child(self, run: Any, order: Any, child_id: str, summary: str) -> Any:
        """Return the result of a workflow that is paused, throttled and cancelled with this one."""
        child = await workflow.start_child_workflow(
            run,
            order,
            id=child_id,
            search_attributes=workflow.info().typed_search_attributes,
            static_summary=summary,
        )
        sent = (False, self.rate)
        try:
            while not child.done():
                await workflow.wait_condition(
                    lambda: child.done() or (self.is_paused, self.rate) != sent  # noqa: B023 - as it is then
                )
                paused, rate = self.is_paused, self.rate
                if not child.done() and paused != sent[0]:
                    await child.signal("pause" if paused else "resume")
                if not child.done() and rate != sent[1]:
                    await child.signal("throttle", rate or 0.0)
                sent = (paused, rate)
        finally:
            if not child.done():
                await ended(child)
        return await child


def _started(
    work: Activity[T],
    argument: object,
    limit: timedelta,
    summary: str,
    cancellation: workflow.ActivityCancellationType,
) -> workflow.ActivityHandle[T]:
    return workflow.start_activity_method(
        work,
        argument,
        start_to_close_timeout=limit,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=RETRY,
        cancellation_type=cancellation,
        summary=summary,
    )


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Return the result, also where whoever waits is cancelled meanwhile: what was done must be known."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        return await task


async def ended(task: "asyncio.Task[T]") -> T | None:
    """Cancel a task that is not needed any more and return its result; None: it had none yet."""
    if not task.done():
        task.cancel()
    try:
        return await task
    except BaseException as error:
        if is_cancelled_exception(error):
            return None
        raise

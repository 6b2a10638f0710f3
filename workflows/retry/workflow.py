"""One workflow for each pipeline: tries its dead letters again until none is left.

`livevec worker` feeds it (feeder.py); a person hastens, drops and looks with `livevec retry`.
"""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from workflows.control import Controlled
from workflows.progress import Progress, duration
from workflows.retry.activities import RetryActivities
from workflows.retry.contract import (
    Attempt,
    Attempts,
    Feed,
    RetryEnd,
    RetryStart,
    RetryState,
    RetryStatus,
    Round,
    Selection,
    TryOutcome,
)
from workflows.retry.queue import RetryQueue

_DOCUMENTS_PER_CALL = 100
_CALL_TIMEOUT = timedelta(minutes=10)
_FIRST_LETTER = timedelta(minutes=1)
_TROUBLE_PAUSE = timedelta(minutes=5)
_REASONS_SHOWN = 10


@workflow.defn
class Retry(Controlled):
    """Holds the dead letters of one pipeline; ends when none is left, and begins anew with the next."""

    @workflow.init
    def __init__(self, start: RetryStart) -> None:
        super().__init__()
        self._queue = RetryQueue(start.state, start.policy, workflow.random().random)
        self._news = 0
        self._trouble = ""

    @workflow.run
    async def run(self, start: RetryStart) -> RetryEnd:
        calls = 0
        if not len(self._queue):
            await self._wait(_FIRST_LETTER)
        while len(self._queue):
            await self.unpaused()
            if calls >= start.calls_max or workflow.info().is_continue_as_new_suggested():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(replace(start, policy=self._queue.policy, state=self._queue.state()))
            attempts = self._queue.due(workflow.time(), _DOCUMENTS_PER_CALL)
            if attempts:
                await self._try(start.pipeline, attempts)
                calls += 1
            else:
                next_at_s = self._queue.next_at_s()
                if next_at_s is not None:
                    self._tell("waiting")
                    await self._wait(timedelta(seconds=max(0.0, next_at_s - workflow.time())))
        self._tell("nothing left")
        await workflow.wait_condition(workflow.all_handlers_finished)
        return RetryEnd(self._queue.taken, dict(self._queue.totals))

    async def _try(self, pipeline: str, attempts: tuple[Attempt, ...]) -> None:
        self._tell("trying")
        try:
            done = await self.step(
                RetryActivities.retry,
                Attempts(pipeline, attempts),
                _CALL_TIMEOUT,
                f"{len(attempts)} documents",
            )
        except ActivityError as error:
            # A person has to act first; the dead letters wait for that.
            self._trouble = error.cause.message if isinstance(error.cause, ApplicationError) else str(error)
            self._tell("somebody has to act")
            await self._wait(_TROUBLE_PAUSE)
        else:
            self._trouble = ""
            self._queue.policy = done.policy
            self._queue.settle(done.tried, workflow.time())

    async def _wait(self, at_most: timedelta) -> None:
        """Wait so long, or until something came in."""
        news = self._news
        with suppress(TimeoutError):
            await workflow.wait_condition(lambda: self._news != news, timeout=at_most)

    def _tell(self, phase: str) -> None:
        queue = self._queue
        waiting, given_up = queue.counted()
        facts: dict[str, object] = {}
        for kind, counts in (("waits", waiting), ("given_up", given_up)):
            for reason, count in counts.most_common(_REASONS_SHOWN):
                why = queue.message(reason)
                facts[f"{kind}, {reason}"] = f"{count:,} ({why})" if why else f"{count:,}"
        for outcome in (TryOutcome.APPLIED, TryOutcome.SUPERSEDED, TryOutcome.DROPPED):
            facts[f"{outcome} so far"] = queue.totals[outcome]
        next_at_s = queue.next_at_s()
        if next_at_s is not None and len(queue):
            at = datetime.fromtimestamp(next_at_s, UTC)
            facts["next try"] = (
                f"{at:%Y-%m-%d %H:%M:%S} UTC (in {duration(max(0.0, next_at_s - workflow.time()))})"
            )
        notes = [self._trouble] if self._trouble else []
        if len(queue) and not queue.room:
            notes.append(
                "full: newer dead letters wait in Kafka until some of these are settled; correct their rows, "
                "or give some up with `livevec retry PIPELINE --drop KEY`"
            )
        done = queue.taken - len(queue)
        self.show(Progress(phase=phase, done=done, total=queue.taken, note="; ".join(notes)), **facts)

    # ---- what the feeder and people tell and ask

    @workflow.signal(description="Dead letters to try again.")
    def feed(self, feed: Feed) -> None:
        self._queue.feed(feed, workflow.time())
        self._news += 1

    @workflow.update(name="try_now", description="Try these at once, whatever the policy says of them.")
    def try_now(self, selection: Selection) -> Round:
        round_ = self._queue.request(selection, workflow.time())
        self._news += 1
        return replace(round_, outcomes=dict(round_.outcomes))

    @try_now.validator
    def _check_held(self, selection: Selection) -> None:
        if not self._queue.selected(selection):
            raise ApplicationError(
                f"no dead letter with {selection} is held; `livevec retry PIPELINE --list`"
            )

    @workflow.update(name="drop", description="Forget these for good; answers how many.")
    def drop(self, selection: Selection) -> int:
        dropped = self._queue.drop(selection)
        self._news += 1
        return dropped

    drop.validator(_check_held)

    @workflow.query(description="Documents by reason, room, next try.")
    def status(self) -> RetryStatus:
        queue = self._queue
        waiting, given_up = queue.counted()
        return RetryStatus(
            waiting=dict(waiting),
            given_up=dict(given_up),
            room=queue.room,
            next_at_s=queue.next_at_s(),
            taken=queue.taken,
            totals=dict(queue.totals),
            trouble=self._trouble,
        )

    @workflow.query(description="All that is held.")
    def held(self) -> RetryState:
        return self._queue.state()

    @workflow.query(name="round", description="What one request to try again led to so far.")
    def round_(self, number: int) -> Round | None:
        return self._queue.round(number)

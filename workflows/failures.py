"""The one place that says what a failure of an activity means to Temporal: whether, and when, it is tried again.

Activities raise the daemon's own errors, whose class says what to do:

    RetryLater                                    tried again, not before the time that the other side named
    ConfigError, StopPipeline, StopProcess,       not tried again: a person has to act first; the workflow fails
    RejectRow, SplitBatch, other LivevecErrors    and says what to do
    anything else (a bug)                         tried again a few times, then the workflow fails
"""

from datetime import timedelta
from typing import Any

import structlog
from temporalio import activity
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from daemon.errors import LivevecError, RetryLater

log = structlog.get_logger(__name__)
RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=0.5), backoff_coefficient=2.0, maximum_interval=timedelta(seconds=20)
)
"""For every activity: without an end, since the parts come back, and what never will is not retryable."""

_OWN_WORD_S_MIN = 5.0
"""A shorter wait than that is for calls in a loop; the policy's growing pauses are better for a whole activity."""
_SURPRISES_MAX = 5


def application_error(error: Exception, attempt: int = 1) -> BaseException:
    """Return the error in Temporal's terms; `attempt`: how often the activity was begun, this time included."""
    if isinstance(error, FailureError):
        return error
    name = type(error).__name__
    if isinstance(error, RetryLater):
        wait = timedelta(seconds=error.retry_after_s) if error.retry_after_s >= _OWN_WORD_S_MIN else None
        return ApplicationError(str(error), type=name, next_retry_delay=wait)
    if isinstance(error, LivevecError):
        return ApplicationError(str(error), type=name, non_retryable=True)
    if attempt >= _SURPRISES_MAX:
        # Its text is not ours: a driver's message may quote a row.
        message = f"an error that livevec does not know ({name}); see the worker's log, and report it"
        return ApplicationError(message, type=name, non_retryable=True)
    return ApplicationError(f"an error that livevec does not know ({name})", type=name)


class TranslatesFailures(Interceptor):
    """Stands around every activity of the worker."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Translates(next)


class _Translates(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await super().execute_activity(input)
        except Exception as error:
            if not isinstance(error, LivevecError | FailureError):
                log.exception("activity_failed", activity=activity.info().activity_type)
            # Without its cause: Temporal would store that too, and a driver's message may quote a row.
            raise application_error(error, activity.info().attempt) from None

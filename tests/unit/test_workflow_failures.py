"""What an error of an activity means to Temporal, and what is shown of a workflow."""

import pytest
from temporalio.exceptions import ApplicationError

from daemon.errors import (
    ConfigError,
    LivevecError,
    RejectRow,
    RetryLater,
    SplitBatch,
    StopPipeline,
    StopProcess,
    WorkflowError,
)
from workflows.failures import application_error
from workflows.progress import Beat, Progress, beating, duration, markdown


def failure(error: Exception, attempt: int = 1) -> ApplicationError:
    found = application_error(error, attempt)
    assert isinstance(found, ApplicationError)
    return found


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("m"),
        StopPipeline("m"),
        StopProcess("m"),
        SplitBatch("m"),
        RejectRow("m", "reason"),
        WorkflowError("m"),
        LivevecError("m"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_person_must_act_on_is_not_tried_again(error: LivevecError) -> None:
    found = failure(error)
    assert (found.non_retryable, found.type, found.message) == (True, type(error).__name__, "m")


def test_what_may_work_later_is_tried_again_not_before_the_other_sides_own_word() -> None:
    assert not failure(RetryLater("m")).non_retryable
    assert failure(RetryLater("m", 0.2)).next_retry_delay is None, "short waits are for calls in a loop"
    wait = failure(RetryLater("m", 42.0)).next_retry_delay
    assert wait is not None
    assert wait.total_seconds() == 42


def test_a_surprise_is_tried_again_a_few_times_and_tells_nothing_of_a_row() -> None:
    surprise = KeyError("the text of a row")
    assert not failure(surprise).non_retryable
    last = failure(surprise, attempt=5)
    assert last.non_retryable
    assert "the text" not in failure(surprise).message + last.message


def test_an_error_that_is_temporals_already_stays() -> None:
    error = ApplicationError("m", non_retryable=True)
    assert application_error(error) is error


def test_the_estimate_is_never_passed_before_the_end() -> None:
    assert Progress(phase="copying", done=120, total=100).percent == 99
    assert Progress(phase="ended", done=120, total=100).percent == 100
    assert Progress(phase="copying", done=120).percent is None


def test_what_the_running_activity_has_done_since_is_added() -> None:
    told = Progress(phase="copying", done=100, total=400)
    shown = beating(told, Beat(done=50, rate_per_s=25.0))
    assert (shown.done, shown.rate_per_s, shown.left_s) == (150, 25.0, 10.0)
    assert beating(told, None) == told
    paused = Progress(phase="paused", done=100)
    assert beating(paused, Beat(done=50)) == paused


def test_details_are_markdown_without_empty_lines() -> None:
    text = markdown(
        Progress(phase="copying", done=1000, total=4000, rate_per_s=10.0, left_s=300.0, note="a note"),
        up_to_key="7",
        unreadable_rows=0,
        throttled_to=None,
    )
    assert text.splitlines() == [
        "**copying**",
        "",
        "- 1,000 of about 4,000 (25 %)",
        "- 10 a second",
        "- about 5 min left",
        "- a note",
        "- up to key: 7",
    ]


@pytest.mark.parametrize(("seconds", "shown"), [(42, "42 s"), (300, "5 min"), (12_000, "3 h 20 min")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown

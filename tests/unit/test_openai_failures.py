"""What becomes of each failure of an OpenAI-compatible server."""

from http import HTTPStatus

import httpx
import orjson
import pytest

from daemon.embedding.openai.failures import (
    CAUSE_BY_ERROR,
    CAUSE_BY_STATUS,
    TRIES_MAX,
    WAIT_S_MAX,
    Cause,
    Failure,
    failure_class,
    failure_of_answer,
    failure_of_error,
    may_lie_in_the_texts,
    told_wait_s,
    wait_s,
)
from daemon.errors import FailureClass, RejectRow, RetryLater, SplitBatch, StopProcess

NOW_S = 1_735_689_600.0  # Wed, 01 Jan 2025 00:00:00 GMT
WHERE = "model 'm' at https://host/v1"


def _kinds(error: type[httpx.HTTPError]) -> list[type[httpx.HTTPError]]:
    """What is raised of an error's tree: its leaves."""
    below = [kind for child in error.__subclasses__() for kind in _kinds(child)]
    return below or [error]


RAISED = [kind for kind in _kinds(httpx.RequestError) if kind.__module__.startswith("httpx")]


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_every_error_of_the_http_client_has_a_cause(kind: type[httpx.RequestError]) -> None:
    assert isinstance(failure_of_error(kind("words of the client")), Failure)


def test_the_table_of_errors_names_no_error_that_is_gone() -> None:
    assert set(RAISED) == set(CAUSE_BY_ERROR)


@pytest.mark.parametrize(
    "status", [status for status in HTTPStatus if status >= 300], ids=lambda s: str(int(s))
)
def test_every_status_of_the_standards_has_a_cause(status: HTTPStatus) -> None:
    assert failure_of_answer(httpx.Response(status), NOW_S).cause is CAUSE_BY_STATUS[status]


@pytest.mark.parametrize("status", [299, 499, 599])
def test_a_status_of_no_standard_is_a_failure_of_the_server(status: int) -> None:
    assert failure_of_answer(httpx.Response(status), NOW_S).cause is Cause.FAILED


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.name)
@pytest.mark.parametrize("texts", [0, 1, 2])
def test_every_cause_has_a_failure_class_that_says_where_and_what_to_do(cause: Cause, texts: int) -> None:
    for tries in (0, 1, TRIES_MAX):
        failure = failure_class(Failure(cause, "said"), texts=texts, where=WHERE, tries=tries)
        assert isinstance(failure, FailureClass)
        assert str(failure).startswith(f"{WHERE} {cause.value}")
        assert "; " in str(failure)


# `texts` 0: the probe failed; 1 and 2: another text passes, where the cause may lie in the texts.
@pytest.mark.parametrize(
    ("cause", "texts", "tries", "expected"),
    [
        (Cause.UNREACHABLE, 500, 0, RetryLater),
        (Cause.UNAVAILABLE, 500, 0, RetryLater),
        (Cause.RATE_LIMITED, 500, 0, RetryLater),
        (Cause.OUT_OF_CREDIT, 500, 0, RetryLater),
        (Cause.DENIED, 500, 0, StopProcess),
        (Cause.NOT_FOUND, 500, 0, StopProcess),
        (Cause.OTHER_DIMENSION, 500, 0, StopProcess),
        (Cause.TIMED_OUT, 2, 0, SplitBatch),
        (Cause.TIMED_OUT, 1, 99, RetryLater),
        (Cause.TIMED_OUT, 0, 0, RetryLater),
        (Cause.REFUSED, 2, 0, SplitBatch),
        (Cause.REFUSED, 1, 0, RejectRow),
        (Cause.REFUSED, 0, 0, StopProcess),
        (Cause.NOT_FINITE, 2, 0, SplitBatch),
        (Cause.NOT_FINITE, 1, 0, RejectRow),
        (Cause.NOT_FINITE, 0, 0, RetryLater),
        (Cause.FAILED, 2, 0, SplitBatch),
        (Cause.FAILED, 1, TRIES_MAX - 1, RetryLater),
        (Cause.FAILED, 1, TRIES_MAX, RejectRow),
        (Cause.FAILED, 0, 0, RetryLater),
        (Cause.MALFORMED, 2, 0, SplitBatch),
        (Cause.MALFORMED, 1, TRIES_MAX - 1, RetryLater),
        (Cause.MALFORMED, 1, TRIES_MAX, RejectRow),
        (Cause.MALFORMED, 0, 0, RetryLater),
    ],
)
def test_the_failure_class_follows_from_cause_and_batch(
    cause: Cause, texts: int, tries: int, expected: type[FailureClass]
) -> None:
    assert type(failure_class(Failure(cause), texts=texts, where="m", tries=tries)) is expected
    if expected in (SplitBatch, RejectRow):
        assert may_lie_in_the_texts(Failure(cause), texts)


@pytest.mark.parametrize(
    ("status", "error", "cause"),
    [
        (
            429,
            {"message": "Rate limit reached", "type": "tokens", "code": "rate_limit_exceeded"},
            Cause.RATE_LIMITED,
        ),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, Cause.OUT_OF_CREDIT),
        (
            429,
            {"message": "Request too large for m on tokens per min (TPM)", "type": "tokens"},
            Cause.REFUSED,
        ),
        (400, {"message": "no such model", "code": "model_not_found"}, Cause.NOT_FOUND),
        (500, {"message": "the input length exceeds the context length"}, Cause.REFUSED),
        (500, {"message": "The server had an error", "code": 500}, Cause.FAILED),
        (503, {"message": "too large", "code": None}, Cause.UNAVAILABLE),
        (500, "input is too large to process", Cause.REFUSED),
        (500, None, Cause.FAILED),
    ],
)
def test_causes_are_told_apart_by_code_and_message(status: int, error: object, cause: Cause) -> None:
    for body in ({"error": error}, error):
        answer = httpx.Response(status, content=orjson.dumps(body))
        assert failure_of_answer(answer, NOW_S).cause is cause


def test_only_short_codes_of_an_answer_are_shown() -> None:
    error = {"message": "text of a row", "type": "Text of a row", "code": "sk-4f81e0"}
    assert failure_of_answer(httpx.Response(400, json={"error": error}), NOW_S).said == "400"
    error["type"] = "invalid_request_error"
    assert (
        failure_of_answer(httpx.Response(400, json={"error": error}), NOW_S).said
        == "400 invalid_request_error"
    )
    assert failure_of_answer(httpx.Response(400, content=b"text of a row"), NOW_S).said == "400"


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Wed, 01 Jan 2025 00:00:30 GMT"}, 30.0),
        # Our clock may be wrong; the server's tells how far away its date is.
        ({"retry-after": "Thu, 02 Jan 2025 00:00:30 GMT", "date": "Thu, 02 Jan 2025 00:00:10 GMT"}, 20.0),
        ({"retry-after": "Tue, 31 Dec 2024 00:00:00 GMT"}, 0.0),
        ({"retry-after": "86400"}, WAIT_S_MAX),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"x-ratelimit-reset-requests": "250ms"}, 0.25),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"x-ratelimit-reset-tokens": "10"}, 10.0),
        ({"x-ratelimit-reset-tokens": "in a while"}, None),
        ({"x-ratelimit-reset-tokens": "1s", "x-ratelimit-reset-requests": "9s"}, 1.0),
        (
            {
                "x-ratelimit-reset-tokens": "1s",
                "x-ratelimit-reset-requests": "9s",
                "x-ratelimit-remaining-requests": "0",
            },
            9.0,
        ),
        ({"retry-after": "2", "x-ratelimit-reset-tokens": "6m0s"}, 2.0),
    ],
)
def test_the_wait_is_what_the_server_tells(headers: dict[str, str], expected_s: float | None) -> None:
    assert told_wait_s(httpx.Headers(headers), NOW_S) == (
        None if expected_s is None else pytest.approx(expected_s)
    )


def test_the_wait_told_is_the_failure_s_and_has_a_default() -> None:
    answer = httpx.Response(429, headers={"Retry-After": "20"})
    failure = failure_of_answer(answer, NOW_S)
    assert wait_s(failure) == 20
    verdict = failure_class(failure, texts=5, where="m")
    assert isinstance(verdict, RetryLater)
    assert verdict.retry_after_s == 20
    assert wait_s(failure_of_answer(httpx.Response(429), NOW_S)) > 0

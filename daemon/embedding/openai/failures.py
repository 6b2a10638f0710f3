"""What an OpenAI-compatible server's failures mean: the one place where its statuses become failure classes.

Nothing of what the server wrote is shown but its short codes: its messages repeat texts and parts of the key.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

import httpx
import orjson

from daemon.errors import FailureClass, RejectRow, RetryLater, SplitBatch, StopProcess

TRIES_MAX = 10
"""So often a lone text may fail inside a server that embeds other texts, before it is the text's fault."""


class Cause(Enum):
    """Why a request failed."""

    UNREACHABLE = "cannot be reached"
    UNAVAILABLE = "is not available"
    RATE_LIMITED = "limits the rate of requests"
    OUT_OF_CREDIT = "has no credit left for this account"
    TIMED_OUT = "did not answer in time"
    DENIED = "denied access"
    NOT_FOUND = "has no such model, or no embeddings at this address"
    REFUSED = "refused the request"
    FAILED = "failed"
    MALFORMED = "answered with something else than one vector for each text"
    OTHER_DIMENSION = "gives vectors of another length"
    NOT_FINITE = "gave a vector that is not finite"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed request.

    Attributes:
        said: status and code of the answer, or the lengths of vectors; fit for a message.
        retry_after_s: what the server told to wait; None where it did not.
    """

    cause: Cause
    said: str = ""
    retry_after_s: float | None = None


_MAY_LIE_IN_THE_TEXTS = {Cause.REFUSED, Cause.FAILED, Cause.MALFORMED, Cause.NOT_FINITE}
KEEPS_THE_MODEL = {Cause.RATE_LIMITED, Cause.OUT_OF_CREDIT, Cause.REFUSED, Cause.NOT_FINITE}
"""After any other failure another model may answer."""
TELLS_TO_WAIT = {Cause.UNAVAILABLE, Cause.RATE_LIMITED, Cause.OUT_OF_CREDIT}
"""These concern all requests, not only the one that failed."""

VENDOR_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)
# RemoteProtocolError is of a kept connection that the server closed at the moment it was used again.
CAUSE_BY_ERROR: dict[type[Exception], Cause] = (
    dict.fromkeys(
        (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.CloseError), Cause.UNREACHABLE
    )
    | dict.fromkeys((httpx.RemoteProtocolError, httpx.LocalProtocolError), Cause.UNREACHABLE)
    | dict.fromkeys((httpx.ProxyError, httpx.ConnectTimeout, httpx.PoolTimeout), Cause.UNREACHABLE)
    | dict.fromkeys((httpx.ReadTimeout, httpx.WriteTimeout), Cause.TIMED_OUT)
    | dict.fromkeys((httpx.DecodingError,), Cause.MALFORMED)
    | dict.fromkeys((httpx.UnsupportedProtocol, httpx.TooManyRedirects), Cause.NOT_FOUND)
)
CAUSE_BY_STATUS = (
    # Redirects are not followed: the key would go where nobody sent it.
    dict.fromkeys((300, 301, 302, 303, 304, 305, 307, 308), Cause.NOT_FOUND)
    | dict.fromkeys((404, 405, 410, 421, 426, 501), Cause.NOT_FOUND)
    | dict.fromkeys((401, 403, 407, 451, 511), Cause.DENIED)
    | dict.fromkeys((402,), Cause.OUT_OF_CREDIT)
    | dict.fromkeys((425, 429), Cause.RATE_LIMITED)
    | dict.fromkeys((503, 529), Cause.UNAVAILABLE)
    | dict.fromkeys((502, 520, 521, 522, 523, 525, 526, 530), Cause.UNREACHABLE)
    | dict.fromkeys((408, 504, 524), Cause.TIMED_OUT)
    | dict.fromkeys((409, 423, 424, 500, 506, 507, 508), Cause.FAILED)
    | dict.fromkeys((400, 406, 411, 412, 413, 414, 415, 416, 417, 418, 422), Cause.REFUSED)
    | dict.fromkeys((428, 431, 505, 510), Cause.REFUSED)
)
_CAUSE_BY_CODE = {
    "model_not_found": Cause.NOT_FOUND,
    # A 429 that no waiting ends.
    "insufficient_quota": Cause.OUT_OF_CREDIT,
    "billing_hard_limit_reached": Cause.OUT_OF_CREDIT,
    "billing_not_active": Cause.OUT_OF_CREDIT,
}
_CODE = re.compile(r"[a-z_]{1,64}")
# OpenAI answers 429 to a request above the limit of a minute, llama.cpp and Ollama 500 to a text above the context.
_TOO_LARGE = re.compile(r"too large|too long|context length", re.IGNORECASE)


def failure_of_error(error: Exception) -> Failure:
    """Return what an error of httpx means; one that the table does not name is of a connection that was closed."""
    # Of names, addresses and certificates alone; other errors may quote what was sent.
    said = str(error) if isinstance(error, httpx.ConnectError | httpx.ProxyError) else ""
    return Failure(CAUSE_BY_ERROR.get(type(error), Cause.UNREACHABLE), said)


def failure_of_answer(answer: httpx.Response, now_s: float) -> Failure:
    """Return what an answer other than 200 means; `now_s` is the time of day, for dates in it."""
    code, message = _error_of(answer.content)
    # A status that no standard names is taken for a failure of the server.
    cause = CAUSE_BY_STATUS.get(answer.status_code, Cause.FAILED)
    cause = _CAUSE_BY_CODE.get(code, cause)
    if cause in (Cause.RATE_LIMITED, Cause.FAILED) and _TOO_LARGE.search(message):
        cause = Cause.REFUSED
    told_s = told_wait_s(answer.headers, now_s) if cause in TELLS_TO_WAIT else None
    return Failure(cause, f"{answer.status_code} {code}".strip(), told_s)


def _error_of(content: bytes) -> tuple[str, str]:
    """Return code and message of an error; empty where the server gives none. Only the code is fit to be shown."""
    try:
        error = orjson.loads(content)
    except orjson.JSONDecodeError:
        return "", ""
    if isinstance(error, dict) and "error" in error:
        error = error["error"]
    if not isinstance(error, dict):
        return "", error if isinstance(error, str) else ""
    codes = [code for code in (error.get("code"), error.get("type")) if isinstance(code, str)]
    code, message = next(filter(_CODE.fullmatch, codes), ""), error.get("message")
    return code, message if isinstance(message, str) else ""


def may_lie_in_the_texts(failure: Failure, texts: int) -> bool:
    """Return whether another text would tell if the server or the request is at fault.

    A lone text that takes too long is no proof against it: the server may be busy.
    """
    return failure.cause in _MAY_LIE_IN_THE_TEXTS or (failure.cause is Cause.TIMED_OUT and texts > 1)


def failure_class(failure: Failure, *, texts: int, where: str, tries: int = 0) -> FailureClass:
    """Return what to do about a failure.

    Args:
        texts: how many the request had; 0: it was the probe, whose text is beyond suspicion.
        where: `model 'm' at https://host/v1`, for the message.
        tries: how often this lone text has failed before.
    """
    cause = failure.cause
    what = f"{where} {cause.value}" + (f" ({failure.said})" if failure.said else "")
    if cause in _REMEDIES_OF_SETTINGS or (cause is Cause.REFUSED and not texts):
        return StopProcess(f"{what}; {_REMEDIES_OF_SETTINGS.get(cause, _REFUSES_ALL)}")
    if texts > 1 and may_lie_in_the_texts(failure, texts):
        return SplitBatch(f"{what} of {texts} texts; halves of it may pass")
    if texts == 1 and cause in (Cause.REFUSED, Cause.NOT_FINITE):
        return RejectRow(f"{what} of this one text; {_REMEDIES_OF_A_TEXT}", _REASONS[cause])
    if texts == 1 and cause in (Cause.FAILED, Cause.MALFORMED) and tries >= TRIES_MAX:
        return RejectRow(
            f"{what} {tries} times for this one text and not for another; {_REMEDIES_OF_A_TEXT}",
            _REASONS[cause],
        )
    return RetryLater(f"{what}; is tried again{_RETRIES[cause][1]}", wait_s(failure))


def wait_s(failure: Failure) -> float:
    """Return for how long no request should be sent."""
    return _RETRIES[failure.cause][0] if failure.retry_after_s is None else failure.retry_after_s


# The wait in seconds where the server tells none; when it is tried again, and what to do where that does not help.
_RETRIES = {
    Cause.UNREACHABLE: (0.2, "; check [embedding] url and that the server runs"),
    Cause.UNAVAILABLE: (1.0, " when it says; look at the server, or at its status page"),
    Cause.RATE_LIMITED: (
        1.0,
        " when it says; raise the account's limits, or lower [embedding] requests_max",
    ),
    Cause.OUT_OF_CREDIT: (60.0, " each minute; add credit at the provider"),
    Cause.TIMED_OUT: (0.2, "; look at the server's load, or raise [embedding] timeout_s"),
    Cause.FAILED: (0.5, "; look at the server's log, or at its status page"),
    Cause.MALFORMED: (
        1.0,
        "; check that [embedding] url is the base of an OpenAI-compatible API, often .../v1",
    ),
    Cause.NOT_FINITE: (1.0, "; look at the server's log, its model gives no numbers"),
}
_REMEDIES_OF_SETTINGS = {
    Cause.DENIED: "check [embedding] api_key, and that it may use this model",
    Cause.NOT_FOUND: "check [embedding] model, and that url is the base of the API, often .../v1",
    Cause.OTHER_DIMENSION: (
        "set [embedding] dimension to its length and build the index anew, "
        "or set request_dimension = true where the model can shorten its vectors"
    ),
}
_REFUSES_ALL = "it refuses even a short text: check [embedding] model, and set request_dimension = false"
_REMEDIES_OF_A_TEXT = "lower [embedding] text_tokens_max, name the model's tokenizer, or enable chunking"
_REASONS = {
    Cause.REFUSED: "embedder_refused",
    Cause.FAILED: "embedder_failed",
    Cause.MALFORMED: "embedder_malformed",
    Cause.NOT_FINITE: "embedding_not_finite",
}

# ---- how long a server tells its clients to wait, in the several ways that such servers have

WAIT_S_MAX = 600.0
"""A server that tells more is asked after this all the same: it may have changed its mind."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def told_wait_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Return the seconds to wait, at most WAIT_S_MAX; None where the headers say nothing.

    Args:
        headers: of the answer; names in any case, as httpx has them.
        now_s: the time of day, for a date where the answer has none of its own.
    """
    told_s = _retry_after_s(headers, now_s)
    told_s = _reset_s(headers) if told_s is None else told_s
    return None if told_s is None else min(max(told_s, 0.0), WAIT_S_MAX)


def _retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    value = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(value):
        return float(value)
    until_s = _date_s(value)
    # The server's own clock tells better than ours how far away its date is.
    return None if until_s is None else until_s - (_date_s(headers.get("date", "")) or now_s)


def _date_s(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _reset_s(headers: Mapping[str, str]) -> float | None:
    """Return when the exhausted limits are whole again; the nearest one where none is told to be exhausted."""
    resets_s, exhausted_s = [], []
    for limit in ("requests", "tokens"):
        reset_s = _duration_s(headers.get(f"x-ratelimit-reset-{limit}", ""))
        if reset_s is not None:
            resets_s.append(reset_s)
            if headers.get(f"x-ratelimit-remaining-{limit}", "").strip() == "0":
                exhausted_s.append(reset_s)
    return max(exhausted_s) if exhausted_s else min(resets_s, default=None)


def _duration_s(value: str) -> float | None:
    """Parse `6m0s`, `250ms` or `1h2m3.5s`; a bare number is seconds."""
    value = value.strip()
    parts = _DURATION_PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)

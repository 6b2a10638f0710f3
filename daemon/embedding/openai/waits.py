"""How long a server tells its clients to wait, in the several ways that such servers have."""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

WAIT_S_MAX = 600.0
"""A server that tells more is asked after this all the same: it may have changed its mind."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LIMITED = ("requests", "tokens")


def told_wait_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds to wait, at most WAIT_S_MAX; None where the headers say nothing.

    Args:
        headers: of the answer; names in any case, as httpx has them.
        now_s: the time of day, for a date where the answer has none of its own.
    """
    wait_s = _retry_after_s(headers, now_s)
    if wait_s is None:
        wait_s = _reset_s(headers)
    return None if wait_s is None else min(max(wait_s, 0.0), WAIT_S_MAX)


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
    """When the exhausted limits are whole again; the nearest one where none is told to be exhausted."""
    resets_s = {}
    for limit in _LIMITED:
        reset_s = _duration_s(headers.get(f"x-ratelimit-reset-{limit}", ""))
        if reset_s is not None:
            resets_s[limit] = reset_s
    if not resets_s:
        return None
    exhausted = [
        reset_s
        for limit, reset_s in resets_s.items()
        if headers.get(f"x-ratelimit-remaining-{limit}", "").strip() == "0"
    ]
    return max(exhausted) if exhausted else min(resets_s.values())


def _duration_s(value: str) -> float | None:
    """`6m0s`, `250ms`, `1h2m3.5s`; a bare number is seconds."""
    value = value.strip()
    parts = _DURATION_PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)

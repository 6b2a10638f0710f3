"""The result of one check."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: a short, stable word, e.g. `wal_level`.
        ok: whether it is as it must be.
        message: what was found.
        remedy: what to run or change; empty when ok.
    """

    check: str
    ok: bool
    message: str
    remedy: str = ""


def passed(check: str, message: str) -> Finding:
    return Finding(check, True, message)


def failed(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, False, message, remedy)

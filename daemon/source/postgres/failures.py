"""psycopg's errors -> failure classes, in this one place."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from daemon.errors import FailureClass, RejectRow, RetryLater, StopPipeline

_AWAY_S = 0.5
_BUSY_S = 0.2

_RETRIED_CLASSES = {
    "08": _AWAY_S,  # connection exception
    "40": _BUSY_S,  # transaction rollback: deadlock, serialization
    "53": 1.0,  # insufficient resources: too many connections, out of memory, disk full
    "55": _BUSY_S,  # object not in prerequisite state: lock timeout, object in use
    "57": _AWAY_S,  # operator intervention: shutting down, starting up, statement timeout
    "58": 1.0,  # system error
    "XX": 1.0,  # internal error
    "72": _BUSY_S,  # snapshot too old
}
_REFUSED_BY_PSYCOPG = (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError)
"""Without an SQLSTATE these are psycopg's own: a connection string or a value that it does not send."""
_REMEDY_OF_DSN = "correct the source's `dsn`, or the row whose key it cannot send"
_REMEDIES = {
    "3F": "correct `table` of the pipeline",
    "42501": "grant the role SELECT on the table, and BYPASSRLS where row security hides rows from it",
    "42P01": "bring the table back, or correct `table` of the pipeline",
    "42703": "bring the column back, or take it out of the pipeline's text and metadata",
    "22": "the table's columns have changed type: start the daemon again, so that it reads them anew",
    "42": "the table's columns have changed: start the daemon again, so that it reads them anew",
    "0A": "the table has changed while it was read: start the daemon again",
}


def failure(error: psycopg.Error, what: str) -> FailureClass:
    """Return the failure class of an error.

    Args:
        what: the source or table concerned, for the message.
    """
    state = error.sqlstate or ""
    if not state and isinstance(error, _REFUSED_BY_PSYCOPG):
        return StopPipeline(f"{what}: psycopg refused a call: {_message(error)}; {_REMEDY_OF_DSN}")
    if not state:
        # No SQLSTATE: libpq found no server, lost it, or was turned away (a wrong password, a missing database).
        return RetryLater(f"{what}: PostgreSQL cannot be reached: {_one_line(str(error))}", _AWAY_S)
    if state[:2] in _RETRIED_CLASSES:
        return RetryLater(f"{what}: {_message(error)} ({state})", _RETRIED_CLASSES[state[:2]])
    otherwise = "see PostgreSQL's log, then start the daemon again"
    remedy = _REMEDIES.get(state) or _REMEDIES.get(state[:2], otherwise)
    return StopPipeline(f"{what}: {_message(error)} ({state}); {remedy}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise the failure class of any psycopg error inside; a driver that waits in vain counts as a lost server."""
    try:
        yield
    except psycopg.Error as error:
        raise failure(error, what) from error
    except TimeoutError as error:
        raise RetryLater(f"{what}: PostgreSQL does not answer", _AWAY_S) from error


def _message(error: psycopg.Error) -> str:
    """Return what an error says; not of a DataError (class 22), which quotes the value that it refused."""
    if isinstance(error, psycopg.DataError):
        return type(error).__name__
    return _one_line(error.diag.message_primary or str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def refusal_of_read(error: Exception) -> RejectRow | None:
    """Return what a failed read says about its rows; None: the failure is not the rows'.

    The messages name no value: drivers quote them.
    """
    cause = error.__cause__
    state = (cause.sqlstate or "") if isinstance(cause, psycopg.Error) else ""
    if not isinstance(error, FailureClass):
        message = f"a value of this row cannot be read ({type(error).__name__}); correct the row"
    elif isinstance(cause, psycopg.DataError) or state[:2] in ("XX", "54"):
        kind = f"{type(cause).__name__}, {state or 'no SQLSTATE'}"
        message = f"PostgreSQL cannot give this row ({kind}); correct the row, or --where"
    elif state == "57014":
        message = "PostgreSQL does not give this row in time; raise the source's timeout_s"
    else:
        return None
    return RejectRow(message, "unreadable")

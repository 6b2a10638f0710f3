"""A change: what one record of the log says about one row."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from daemon.core.version import LogVersion

Row = Mapping[str, Any]
"""A row by column name, values as Debezium's JSON carries them (numbers, strings, booleans, None, lists)."""


class Operation(StrEnum):
    UPSERT = "upsert"
    DELETE = "delete"
    TRUNCATE = "truncate"
    REREAD = "reread"
    """The record is only a hint that the row changed: read it from the source (with its own snapshot)."""


class Outcome(StrEnum):
    """How a change ended; every change read ends as exactly one of these."""

    EMBEDDED = "embedded"
    REUSED = "reused"
    """Written whole with the vectors that another index version has of the same text."""
    UNCHANGED = "unchanged"
    METADATA = "metadata"
    COLLAPSED = "collapsed"
    SUPERSEDED = "superseded"
    DELETED = "deleted"
    TRUNCATED = "truncated"
    DEAD_LETTERED = "dead_lettered"
    ABANDONED = "abandoned"
    """Given up unacknowledged, to be read again: Redis went back in time, or the pipeline stopped."""
    IGNORED = "ignored"
    """Nothing to project: tombstones, heartbeats."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row.

    Attributes:
        operation: what to do.
        key: values of the primary key's columns, in the key's order; empty for TRUNCATE.
        row: the row's values after the change; None unless UPSERT.
        version: place in the log; None when the log does not tell it (a hint).
        era: of the source's history.
        wait_xid: for REREAD: the change's xid; its row may be read once this is visible. None: at once, and the
            change is no news (`r`, a row of Debezium's snapshot).
        committed_at_s: commit time at the source, seconds since the epoch.
        appended_at_s: when the record was appended to Kafka.
    """

    operation: Operation
    key: tuple[str, ...]
    row: Row | None
    version: LogVersion | None
    era: int
    wait_xid: int | None
    committed_at_s: float
    appended_at_s: float

"""Debezium's JSON envelopes -> changes.

Takes every envelope that Debezium's PostgreSQL connector writes with the JSON converter, with or without
embedded schemas: c, u, d, r, t, m, tombstones, TOAST placeholders, primary-key changes (a delete and an insert).
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from daemon.core.change import Change, Operation, Row
from daemon.core.version import LogVersion
from daemon.errors import RejectRow, StopPipeline
from daemon.settings import ERA_HEADER
from daemon.source.record import Record

Widen = Callable[[int, int, int], int]
"""(xid modulo 2^32, era, lsn) -> xid in 64 bits."""

_PLACEHOLDER = "__debezium_unavailable_value"
_PLACEHOLDERS = frozenset({_PLACEHOLDER, base64.b64encode(_PLACEHOLDER.encode()).decode()})


@dataclass(frozen=True, slots=True)
class EnvelopeDecoder:
    """Decodes the records of one table.

    Attributes:
        table: its name, for messages.
        key_columns: primary key, in the order that document ids use.
        columns: columns that the pipeline needs of a row.
        normalise: makes a row's values equal to those of the same row read from the source; None: they are.
    """

    table: str
    key_columns: Sequence[str]
    columns: Sequence[str]
    widen: Widen
    normalise: Callable[[Row], Row] | None = None

    def decode(self, record: Record) -> Change | None:
        """Return the change of one record; None if it changes no row (a tombstone, a logical message).

        Raises:
            RejectRow: the record is no envelope of this table.
            StopPipeline: a column that the pipeline needs is gone.
        """
        if record.value is None:
            return None
        envelope = _object(record.value, "value")
        operation = envelope.get("op")
        if operation == "m":
            return None
        if operation not in ("c", "u", "d", "r", "t"):
            raise RejectRow(
                f"the record of {self.table} has no known op ({operation!r:.40}); is the topic written by Debezium "
                "without the unwrap transform?",
                "malformed_envelope",
            )
        source = envelope.get("source")
        if not isinstance(source, dict):
            raise RejectRow(f"the envelope of {self.table} has no source block", "malformed_envelope")
        committed_at_s = (
            _time_s(source, "ts_us", 1e6) or _time_s(source, "ts_ms", 1e3) or record.appended_at_s
        )
        key = () if operation == "t" else row_key(record.key, self.key_columns, self.table)
        era = _era(record)

        def change(kind: Operation, row: Row | None = None) -> Change:
            return Change(kind, key, row, version, era, xid, committed_at_s, record.appended_at_s)

        if operation == "r":
            version, xid = None, None
            return change(Operation.REREAD)
        version, xid = self._version(era, source)
        if operation == "t":
            return change(Operation.TRUNCATE)
        if operation == "d":
            return change(Operation.DELETE if version else Operation.REREAD)
        row = self._row(envelope.get("after"))
        if version is None or any(_unavailable(row[column]) for column in self.columns):
            return change(Operation.REREAD)
        return change(Operation.UPSERT, self.normalise(row) if self.normalise else row)

    def _row(self, after: object) -> Row:
        if not isinstance(after, dict):
            raise RejectRow(f"an envelope of {self.table} carries no row in `after`", "malformed_envelope")
        for column in self.columns:
            if column not in after:
                raise StopPipeline(
                    f"{self.table} has no column {column!r} any more, which the pipeline's text or metadata names; "
                    f"it has {', '.join(sorted(after))}. Change the pipeline in daemon.toml, or bring the column back"
                )
        return cast(Row, after)

    def _version(self, era: int, source: Mapping[str, Any]) -> tuple[LogVersion | None, int | None]:
        """Return place in the log, None where the envelope does not tell it; and the xid in 64 bits."""
        lsn, xid = source.get("lsn"), source.get("txId")
        if not isinstance(lsn, int) or not isinstance(xid, int) or isinstance(lsn, bool):
            raise RejectRow(
                f"an envelope of {self.table} has no source.lsn and source.txId; livevec needs Debezium's "
                "PostgreSQL connector",
                "malformed_envelope",
            )
        xid64 = self.widen(xid, era, lsn)
        sequence = source.get("sequence")
        try:
            previous = orjson.loads(sequence)[0] if isinstance(sequence, str) else None
            commit_lsn = None if previous is None else int(previous)
        except (ValueError, IndexError, TypeError, KeyError):
            raise RejectRow(f"source.sequence of {self.table} is malformed", "malformed_envelope") from None
        return (None if commit_lsn is None else LogVersion(era, commit_lsn, lsn, xid64)), xid64


def row_key(key: bytes | None, columns: Sequence[str], table: str) -> tuple[str, ...]:
    """Return the primary key in a record's key, as text.

    Raises:
        RejectRow: there is none, or it has other columns.
    """
    if key is None:
        raise RejectRow(
            f"a record of {table} has no key: the table needs a primary key (`livevec connector check`)",
            "no_key",
        )
    values = _object(key, "key")
    try:
        return tuple(key_text(values[column]) for column in columns)
    except KeyError as missing:
        raise RejectRow(
            f"the key of a record of {table} lacks column {missing}; its primary key is {', '.join(columns)}",
            "malformed_key",
        ) from None


def key_text(value: Any) -> str:
    """Return one key column as text, the same for a record's key and a row read from the source."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    raise RejectRow("a key column holds null or a structure; keys are numbers or text", "malformed_key")


def message_time_s(record: Record) -> float | None:
    """Return the commit time of a logical message; None if the record is none.

    The connector writes one through PostgreSQL's log every second: what was committed before it was sent before it.
    Debezium's own heartbeats go on while the log stands still, and prove nothing.
    """
    if record.value is None:
        return None
    envelope = _object(record.value, "value")
    source = envelope.get("source")
    return _time_s(source, "ts_us", 1e6) if envelope.get("op") == "m" and isinstance(source, dict) else None


def _object(data: bytes, part: str) -> dict[str, Any]:
    """Return a JSON object, out of its schema wrapper if it is in one."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RejectRow(f"the record's {part} is not JSON ({error})", "malformed_json") from error
    if isinstance(value, dict) and value.keys() == {"schema", "payload"}:
        value = value["payload"]
    if not isinstance(value, dict):
        raise RejectRow(f"the record's {part} is not a JSON object", f"malformed_{part}")
    return value


def _time_s(block: Mapping[str, Any], name: str, scale: float) -> float | None:
    value = block.get(name)
    return value / scale if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _era(record: Record) -> int:
    for name, value in record.headers:
        if name == ERA_HEADER and value is not None:
            try:
                return int(orjson.loads(value))
            except (ValueError, TypeError):
                raise RejectRow(f"header {ERA_HEADER} is not a number", "malformed_envelope") from None
    return 0


def _unavailable(value: object) -> bool:
    """Return whether Debezium put a placeholder for an unchanged TOAST column: text, base64, or a list holding it."""
    if isinstance(value, str):
        return value in _PLACEHOLDERS
    if isinstance(value, list):
        return value == [_PLACEHOLDER] or value == list(_PLACEHOLDER.encode())
    if isinstance(value, dict):
        return _PLACEHOLDER in value
    return False

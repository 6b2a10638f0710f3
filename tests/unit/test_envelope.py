"""Every envelope that Debezium's PostgreSQL connector writes, and what is none."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.core.change import Operation
from daemon.core.version import LogVersion
from daemon.errors import RejectRow, StopPipeline
from daemon.source.envelope import EnvelopeDecoder
from daemon.source.record import Record

DECODER = EnvelopeDecoder("public.t", ("id",), ("title", "body"), lambda xid, era, lsn: xid + (1 << 32))
SOURCE = {"lsn": 200, "txId": 7, "ts_us": 1_700_000_000_123_456, "ts_ms": 1, "sequence": '["100","200"]'}
ROW = {"id": 5, "title": "t", "body": "b", "other": 1}


def record(value: Any, key: Any = {"id": 5}, headers: tuple[tuple[str, bytes | None], ...] = ()) -> Record:  # noqa: B006
    encode = lambda part: part if part is None or isinstance(part, bytes) else orjson.dumps(part)  # noqa: E731
    return Record("s.public.t", 0, 3, encode(key), encode(value), headers, 10.0, 11.0)


def envelope(op: str, after: Any = None, **source: Any) -> dict[str, Any]:
    return {"before": None, "after": after, "source": SOURCE | source, "op": op, "ts_ms": 5}


@pytest.mark.parametrize(
    ("op", "after", "operation"),
    [("c", ROW, Operation.UPSERT), ("u", ROW, Operation.UPSERT), ("d", None, Operation.DELETE)],
)
def test_a_change_carries_its_place_in_the_log(op: str, after: Any, operation: Operation) -> None:
    change = DECODER.decode(record(envelope(op, after)))
    assert change is not None
    assert (change.operation, change.key, change.row) == (operation, ("5",), after)
    assert change.version == LogVersion(0, 100, 200, 7 + (1 << 32))
    assert change.committed_at_s == pytest.approx(1_700_000_000.123456)


def test_a_change_keeps_its_era() -> None:
    change = DECODER.decode(record(envelope("c", ROW), headers=(("livevec.era", b"3"),)))
    assert change is not None
    assert change.version == LogVersion(3, 100, 200, 7 + (1 << 32))


def test_a_truncate_has_a_place_but_no_key() -> None:
    change = DECODER.decode(record(envelope("t"), key=None))
    assert change is not None
    assert (change.operation, change.key) == (Operation.TRUNCATE, ())
    assert change.version is not None


def test_a_snapshot_row_is_a_hint_that_waits_for_nothing() -> None:
    change = DECODER.decode(record(envelope("r", ROW)))
    assert change is not None
    assert (change.operation, change.version, change.wait_xid) == (Operation.REREAD, None, None)


@pytest.mark.parametrize("op", ["c", "u", "d"])
def test_a_change_without_the_commit_before_it_is_a_hint_that_waits_for_its_transaction(op: str) -> None:
    change = DECODER.decode(record(envelope(op, ROW, sequence='[null,"200"]')))
    assert change is not None
    assert (change.operation, change.version, change.wait_xid) == (Operation.REREAD, None, 7 + (1 << 32))


@pytest.mark.parametrize(
    "placeholder",
    [
        "__debezium_unavailable_value",
        "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
        ["__debezium_unavailable_value"],
        list(b"__debezium_unavailable_value"),
        {"__debezium_unavailable_value": "__debezium_unavailable_value"},
    ],
)
def test_an_unchanged_toast_column_that_is_needed_makes_a_hint(placeholder: Any) -> None:
    change = DECODER.decode(record(envelope("u", ROW | {"body": placeholder})))
    assert change is not None
    assert (change.operation, change.row, change.wait_xid) == (Operation.REREAD, None, 7 + (1 << 32))
    unneeded = DECODER.decode(record(envelope("u", ROW | {"other": placeholder})))
    assert unneeded is not None
    assert unneeded.operation is Operation.UPSERT


def test_tombstones_and_logical_messages_change_no_row() -> None:
    assert DECODER.decode(record(None)) is None
    assert DECODER.decode(record(envelope("m"))) is None


def test_embedded_schemas_are_unwrapped() -> None:
    wrapped = {"schema": {"type": "struct"}, "payload": envelope("c", ROW)}
    change = DECODER.decode(record(wrapped, key={"schema": {}, "payload": {"id": 5}}))
    assert change is not None
    assert change.key == ("5",)


def test_a_column_that_is_gone_stops_the_pipeline_and_names_it() -> None:
    with pytest.raises(StopPipeline, match="'body'"):
        DECODER.decode(record(envelope("u", {"id": 5, "title": "t"})))


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (b"\xff", {"id": 5}, "malformed_json"),
        (b'{"op":', {"id": 5}, "malformed_json"),
        (b'{"op":"c","after":{"title":"\\ud800"}}', {"id": 5}, "malformed_json"),
        ([1], {"id": 5}, "malformed_value"),
        ({"id": 5, "title": "flattened"}, {"id": 5}, "malformed_envelope"),
        (envelope("c", ROW), None, "no_key"),
        (envelope("c", ROW), b"5", "malformed_key"),
        (envelope("c", ROW), {"nr": 5}, "malformed_key"),
        (envelope("c", ROW), {"id": None}, "malformed_key"),
        (envelope("c", "row"), {"id": 5}, "malformed_envelope"),
        (envelope("c", ROW, lsn=None), {"id": 5}, "malformed_envelope"),
        (envelope("c", ROW, sequence="[1"), {"id": 5}, "malformed_envelope"),
        ({"op": "c", "after": ROW, "source": 3}, {"id": 5}, "malformed_envelope"),
    ],
)
def test_what_is_no_envelope_is_rejected_by_class(value: Any, key: Any, reason: str) -> None:
    with pytest.raises(RejectRow) as caught:
        DECODER.decode(record(value, key))
    assert caught.value.reason == reason
    assert "flattened" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("op", "after", "source", "lsn", "txId", "sequence", "ts_us", "id", "title", "body")


@st.composite
def broken(draw: st.DrawFn) -> tuple[bytes, bytes | None]:
    """A valid envelope with members replaced, removed, or bytes cut."""
    value: dict[str, Any] = envelope(draw(st.sampled_from("cudrt")), dict(ROW))
    key: dict[str, Any] = {"id": 5}
    for _ in range(draw(st.integers(1, 3))):
        target = draw(st.sampled_from([value, value["source"], value.get("after"), key]))
        if isinstance(target, dict):
            name = draw(st.sampled_from([*target, *FIELDS]))
            if draw(st.booleans()):
                target.pop(name, None)
            else:
                target[name] = draw(JSON)
        if not isinstance(value.get("source"), dict):
            break  # there is nothing left in it to break
    data = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME) if _fits(value) else b"{}"
    cut = draw(st.integers(0, len(data)))
    return (data if draw(st.booleans()) else data[:cut]), orjson.dumps(key) if _fits(key) else None


def _fits(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


@settings(max_examples=1_000, deadline=None)
@given(broken())
def test_no_broken_record_raises_anything_but_a_class(case: tuple[bytes, bytes | None]) -> None:
    value, key = case
    with contextlib.suppress(RejectRow, StopPipeline):
        DECODER.decode(record(value, key))

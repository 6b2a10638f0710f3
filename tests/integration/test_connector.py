"""The Kafka Connect client and the definition, against a real Connect, Debezium and PostgreSQL."""

from collections.abc import Iterator

import psycopg
import pytest

from connectors import slot
from connectors.connect import Applied, KafkaConnect
from connectors.definition import RECORD_BYTES_MAX, heartbeat_topic
from daemon.errors import ConnectorError
from daemon.settings import ERA_HEADER, ConnectSettings
from deploy.local.stack import Stack
from tests.support.captured_source import CapturedSource, Envelope, count, end_offset
from tests.support.mirrored_table import wait_until


@pytest.fixture
def captured(stack: Stack) -> Iterator[CapturedSource]:
    """A source with the table $S_t (id, title), not yet captured."""
    captured = CapturedSource(stack.addresses())
    captured.execute("create table $S_t (id int primary key, title text)")
    captured.pipeline("$S_t", "{title}")
    try:
        yield captured
    finally:
        captured.stop()
        with psycopg.connect(stack.addresses().postgres_dsn, autocommit=True) as connection:
            connection.execute(f"drop table if exists {captured.name}_t")


def keys(envelopes: list[Envelope]) -> list[int]:
    return [one.key["id"] for one in envelopes if one.key]


def test_applying_twice_changes_nothing_and_a_changed_definition_updates(captured: CapturedSource) -> None:
    captured.start()
    definition = captured.definition()
    assert captured.client.apply(captured.name, definition) is Applied.UNCHANGED
    assert captured.client.apply(captured.name, {**definition, "max.batch.size": "100"}) is Applied.UPDATED
    assert captured.client.definition(captured.name) == {**definition, "max.batch.size": "100"}
    captured.client.delete(captured.source, with_slot=True)
    assert captured.client.apply(captured.name, definition) is Applied.CREATED


def test_streaming_means_that_the_slot_is_read(captured: CapturedSource) -> None:
    captured.start()
    seen: list[str] = []
    captured.client.wait_until_streaming(captured.source, 30, seen.append)
    found = slot.read(captured.source)
    assert found is not None
    assert (found.active, found.lost, found.plugin) == (True, False, "pgoutput")
    assert seen[-1] == "connector RUNNING, task RUNNING, slot active"


def test_a_connector_that_does_not_stream_in_time_is_an_error_that_says_what_is_missing(
    captured: CapturedSource,
) -> None:
    with pytest.raises(ConnectorError, match=r"is not streaming: no connector, no slot yet \(after 0.2 s\)"):
        captured.client.wait_until_streaming(captured.source, 0.2)


def test_pause_keeps_what_is_committed_meanwhile_for_resume(captured: CapturedSource) -> None:
    captured.start()
    captured.client.pause(captured.name)
    wait_until(lambda: _state(captured) == ("PAUSED", "PAUSED"), 20)
    captured.execute("insert into $S_t values (1, 'a')")
    captured.client.resume(captured.name)
    assert keys(captured.envelopes("$S_t", count(1))) == [1]


def test_a_connector_deleted_without_its_slot_goes_on_where_it_ended(captured: CapturedSource) -> None:
    captured.start()
    captured.execute("insert into $S_t values (1, 'a')")
    captured.envelopes("$S_t", count(1))
    assert captured.client.delete(captured.source, with_slot=False)
    assert captured.client.status(captured.name) is None
    captured.execute("insert into $S_t values (2, 'b')")
    captured.start()
    assert set(keys(captured.envelopes("$S_t", lambda found: 2 in keys(found)))) == {1, 2}


def test_a_connector_deleted_with_its_slot_starts_anew(captured: CapturedSource) -> None:
    captured.start()
    captured.execute("insert into $S_t values (1, 'a')")
    captured.envelopes("$S_t", count(1))
    assert captured.client.delete(captured.source, with_slot=True)
    assert slot.read(captured.source) is None
    # Stored offsets would lie ahead of the new slot, and trust_offset would make the task fail.
    captured.start()
    captured.execute("insert into $S_t values (2, 'b')")
    assert keys(captured.envelopes("$S_t", count(2))) == [1, 2]


def test_deleting_what_is_not_there_is_no_error(captured: CapturedSource) -> None:
    assert not captured.client.delete(captured.source, with_slot=True)
    assert captured.client.status(captured.name) is None


def test_a_slot_made_anew_is_an_error_with_its_remedy_and_apply_tries_again(captured: CapturedSource) -> None:
    captured.start()
    captured.execute("insert into $S_t values (1, 'a')")
    captured.envelopes("$S_t", count(1))
    name = captured.source.slot_name
    captured.client.delete(captured.source, with_slot=False)
    slot.drop(captured.source, 20)
    captured.execute("insert into $S_t values (2, 'lost')")
    captured.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    with pytest.raises(
        ConnectorError, match=rf"slot '{name}' was made anew, or moved, .* raise the source's `era`"
    ):
        captured.start()
    assert captured.client.apply(captured.name, captured.definition()) is Applied.RESTARTED


def test_a_paused_connector_stays_paused_when_its_definition_changes(captured: CapturedSource) -> None:
    captured.start()
    captured.client.pause(captured.name)
    wait_until(lambda: _state(captured) == ("PAUSED", "PAUSED"), 20)
    captured.client.apply(captured.name, {**captured.definition(), "max.batch.size": "100"})
    with pytest.raises(ConnectorError, match="is paused; run `livevec connector resume`"):
        wait_until(lambda: captured.client.wait_until_streaming(captured.source, 20), 20)


def test_every_record_carries_the_era_tombstones_too_and_the_next_era_is_an_update(
    captured: CapturedSource,
) -> None:
    captured.start()
    captured.execute("insert into $S_t values (1, 'a')")
    captured.execute("delete from $S_t")
    captured.envelopes("$S_t", count(3))
    captured.source = captured.source.model_copy(update={"era": 7})
    assert captured.client.apply(captured.name, captured.definition()) is Applied.UPDATED
    captured.client.wait_until_streaming(captured.source, 30)
    captured.execute("insert into $S_t values (2, 'b')")
    found = captured.envelopes("$S_t", count(4))
    assert [one.operation for one in found] == ["c", "d", "", "c"]
    assert [one.headers for one in found] == [{ERA_HEADER: b"0"}] * 3 + [{ERA_HEADER: b"7"}]


def test_truncate_arrives(captured: CapturedSource) -> None:
    captured.start()
    captured.execute("insert into $S_t values (1, 'a')")
    captured.execute("truncate $S_t")
    found = captured.envelopes("$S_t", count(2))
    assert [(one.operation, one.key) for one in found] == [("c", {"id": 1}), ("t", None)]


def test_a_row_far_beyond_kafkas_default_limit_passes(captured: CapturedSource) -> None:
    captured.start()
    size = RECORD_BYTES_MAX // 4
    captured.execute(
        "insert into $S_t select 1, string_agg(md5(i::text), '') from generate_series(1, %s) i", [size // 32]
    )
    (found,) = captured.envelopes("$S_t", count(1))
    assert len(found.after["title"]) == size


def test_heartbeats_and_messages_through_the_log_come_while_the_tables_are_idle(
    captured: CapturedSource,
) -> None:
    captured.start()
    for topic in (heartbeat_topic(captured.source), captured.source.message_topic):
        first = wait_until(lambda topic=topic: end_offset(captured.kafka, topic), 20)  # type: ignore[misc]
        wait_until(lambda topic=topic, first=first: (end_offset(captured.kafka, topic) or 0) >= first + 3, 20)  # type: ignore[misc]


def test_the_slot_holds_back_no_log_while_only_other_tables_are_written(captured: CapturedSource) -> None:
    captured.start()
    captured.execute("create table $S_other as select repeat('x', 1000) from generate_series(1, 5000)")
    written = captured.execute("select (pg_current_wal_lsn() - '0/0')::int8")[0][0]
    try:
        wait_until(lambda: (slot.read(captured.source).confirmed_lsn or 0) >= written, 20)
    finally:
        captured.execute("drop table $S_other")


def test_a_change_reaches_kafka_at_once(captured: CapturedSource) -> None:
    captured.start()
    for number in range(100):
        captured.execute("insert into $S_t values (%s, 'a')", [number])
    found = captured.envelopes("$S_t", count(100))
    delays_ms = sorted(one.delay_ms for one in found[20:])
    # Debezium's default of polling each 500 ms gives a median above 300; ours is 4 on a quiet machine.
    assert delays_ms[len(delays_ms) // 2] < 200, delays_ms


def test_an_update_beside_a_long_vector_does_not_stop_the_connector(captured: CapturedSource) -> None:
    """Debezium fails on an unchanged value of such a type that is stored apart, so `exclusions` leaves it out."""
    captured.execute("create extension if not exists vector")
    captured.execute("alter table $S_t add embedding vector(1536), add scores float8[], add keep text[]")
    captured.start()
    excluded = captured.definition()["column.exclude.list"]
    assert excluded == rf"public\.{captured.name}_t\.embedding,public\.{captured.name}_t\.scores"
    numbers = "(select array_agg(random()) from generate_series(1, 1536))"
    captured.execute(f"insert into $S_t values (1, 'a', {numbers}::vector, {numbers}, '{{x}}')")
    captured.execute("update $S_t set title = 'b'")
    found = captured.envelopes("$S_t", count(2))
    assert [one.after for one in found] == [
        {"id": 1, "title": "a", "keep": ["x"]},
        {"id": 1, "title": "b", "keep": ["x"]},
    ]


def test_without_the_exclusions_the_same_update_stops_it(captured: CapturedSource) -> None:
    captured.execute("create extension if not exists vector")
    captured.execute("alter table $S_t add embedding vector(1536)")
    definition = captured.definition()
    definition.pop("column.exclude.list")
    captured.start(definition)
    captured.execute(
        "insert into $S_t select 1, 'a', array_agg(random())::vector from generate_series(1, 1536)"
    )
    captured.execute("update $S_t set title = 'b'")
    wait_until(lambda: _state(captured)[1] == "FAILED", 30)
    with pytest.raises(
        ConnectorError, match=r"convert data value.*`livevec connector apply` leaves the column out"
    ):
        captured.client.wait_until_streaming(captured.source, 30)


def test_a_table_with_an_awkward_name_is_captured_and_its_likeness_is_not(captured: CapturedSource) -> None:
    name = f"{captured.name} a,b{{}}.*"
    likeness = f"{captured.name} a,bX"
    captured.pipelines.clear()
    pipeline = captured.pipeline(name.replace(".", "!"), "{title}")
    name = pipeline.table.removeprefix("public.")
    captured.pipelines[0] = pipeline.model_copy(update={"topic": f"{captured.name}.public.awkward"})
    identifier, other = (f'"{one}"' for one in (name, likeness))
    captured.execute(f"create table {identifier} (id int primary key, title text)")
    captured.execute(f"create table {other} (id int primary key, title text)")
    try:
        publication = captured.source.publication_name
        captured.execute(f"create publication {publication} for table {identifier}, {other}")
        captured.start()
        captured.execute(f"insert into {other} values (1, 'other')")
        captured.execute(f"insert into {identifier} values (1, 'mine')")
        written = "".join(char if char.isalnum() or char in "._-" else "_" for char in name)
        found = captured.envelopes(written, count(1))
        assert [one.after["title"] for one in found] == ["mine"]
        absent = "".join(char if char.isalnum() else "_" for char in likeness)
        assert end_offset(captured.kafka, f"{captured.name}.public.{absent}") is None
    finally:
        captured.execute(f"drop table {identifier}, {other}")


def test_a_connect_that_is_away_is_an_error_that_names_its_address(captured: CapturedSource) -> None:
    with (
        KafkaConnect(ConnectSettings(url="http://127.0.0.1:9")) as client,
        pytest.raises(ConnectorError, match=r"http://127.0.0.1:9 cannot be reached.*\[connect\] url"),
    ):
        client.status("any")


def test_a_definition_that_connect_refuses_is_an_error_with_its_reason(captured: CapturedSource) -> None:
    definition = {**captured.definition(), "database.port": "9"}
    with pytest.raises(
        ConnectorError, match=r"(?s)refused PUT .* \(400\).*correct the source in daemon.toml"
    ):
        captured.client.apply(captured.name, definition)


def test_acting_on_a_connector_that_is_not_there_says_how_to_make_it(captured: CapturedSource) -> None:
    with pytest.raises(ConnectorError, match="create it with `livevec connector apply`"):
        captured.client.pause("nothing")


def _state(captured: CapturedSource) -> tuple[str, str | None]:
    status = captured.client.status(captured.name)
    assert status is not None
    return status.state, status.task

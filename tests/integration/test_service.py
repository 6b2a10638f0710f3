"""What the daemon does when the world around it is not as it should be."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, wait_until


def produce(table: MirroredTable, records: list[tuple[bytes | None, bytes | None]]) -> None:
    producer = Producer({"bootstrap.servers": table.addresses.kafka_bootstrap_servers})
    for key, value in records:
        producer.produce(table.topic, value, key)
    assert producer.flush(20) == 0


def envelope(key: int, op: str = "c", **changes: object) -> tuple[bytes, bytes]:
    source = {
        "lsn": 10**9 + key,
        "txId": 700,
        "ts_us": int(time.time() * 1e6),
        "sequence": f'["{10**9}","1"]',
    }
    row = {"id": key, "title": "written", "body": "by hand", "category": "a", "price": "1.00"}
    value = {"op": op, "source": source, "after": row, "before": None} | changes
    return json.dumps({"id": key}).encode(), json.dumps(value).encode()


def test_records_that_are_no_envelopes_are_dead_lettered_with_where_they_were(
    mirrored: MirroredTable,
) -> None:
    secret = "a secret that must not be shown"
    with mirrored.daemon() as daemon:
        produce(
            mirrored,
            [
                (b"not json", b"{}"),
                (json.dumps({"id": 1}).encode(), b"\xff\xfe"),
                (None, json.dumps({"op": "c", "source": {}, "after": {"title": secret}}).encode()),
                (json.dumps({"id": 2}).encode(), json.dumps({"title": secret}).encode()),
            ],
        )
        wait_until(lambda: daemon.outcomes().get("dead_lettered") == 4)
        letters = mirrored.dead_letters()
        assert [letter["livevec.offset"] for letter in letters] == ["0", "1", "2", "3"]
        assert {letter["livevec.reason"] for letter in letters} == {
            "malformed_envelope",
            "malformed_json",
            "no_key",
        }
        assert all(letter["livevec.topic"] == mirrored.topic for letter in letters)
        assert secret not in json.dumps(letters) + daemon.log.read_text()
        wait_until(lambda: mirrored.committed() == {0: 4})


def test_an_oversized_text_and_a_wrong_number_leave_their_neighbours_alone(
    stack: Stack, tmp_path: Path
) -> None:
    ddl = "id bigint primary key, title text, body text, category text, price text"
    table = MirroredTable(stack, tmp_path, ddl, pipeline="text_bytes_max = 1000")
    try:
        table.connect()
        with table.daemon() as daemon:
            table.execute(
                "insert into $T values (1, 'fine', 'b', 'c', '1'), (2, 'long', repeat('x', 2000), 'c', '1'), "
                "(3, 'number', 'b', 'c', 'cheap'), (4, 'fine too', 'b', 'c', '2')"
            )
            wait_until(lambda: sorted(table.indexed()) == ["1", "4"])
            wait_until(lambda: daemon.outcomes().get("dead_lettered") == 2)
            assert sorted(letter["livevec.reason"] for letter in table.dead_letters()) == [
                "not_numeric",
                "oversized_text",
            ]
            table.execute("update $T set body = 'short' where id = 2")
            table.execute("update $T set price = '3' where id = 3")
            wait_until(lambda: sorted(table.indexed()) == ["1", "2", "3", "4"])
    finally:
        table.close()


def test_a_dropped_column_stops_the_pipeline_and_says_so_and_loses_nothing(mirrored: MirroredTable) -> None:
    mirrored.connect()
    with mirrored.daemon() as daemon:
        mirrored.execute("insert into $T values (1, 'a', 'b', 'c', 1)")
        mirrored.wait_equal()
        mirrored.execute("alter table $T rename column category to kind")
        mirrored.execute("insert into $T values (2, 'a', 'b', 'c', 1)")
        stopped = wait_until(lambda: daemon.get("/status.json")["stopped_pipelines"])
        assert "category" in stopped[mirrored.name]
        assert daemon.process.poll() is None
        assert mirrored.committed()[0] <= 1
        mirrored.execute("alter table $T rename column kind to category")
    with mirrored.daemon() as again:
        # The record itself still lacks the column; the same text again is a record that has it.
        assert "category" in wait_until(lambda: again.get("/status.json")["stopped_pipelines"])[mirrored.name]


def test_a_column_that_the_table_lacks_is_refused_at_start(mirrored: MirroredTable) -> None:
    with mirrored.daemon():
        pass
    mirrored.config_path.write_text(mirrored.config_path.read_text().replace("{title}: {body}", "{titel}"))
    daemon = mirrored.start_daemon()
    assert daemon.process.wait(60) != 0
    assert "titel" in daemon.log.read_text()


def test_an_index_made_with_other_settings_is_kept_fresh_as_it_was_made_and_says_so(
    mirrored: MirroredTable,
) -> None:
    mirrored.connect()
    with mirrored.daemon():
        pass
    mirrored.config_path.write_text(mirrored.config_path.read_text().replace("{title}: {body}", "{title}"))
    with mirrored.daemon() as again:
        mirrored.execute("insert into $T (id, title, body) values (900, 'old', 'template')")
        mirrored.wait_equal()
        assert again.metrics()[f'livevec_settings_differ{{pipeline="{mirrored.name}"}}'] == 1
        assert "livevec reindex" in again.log.read_text()


def test_a_wrong_dimension_is_refused_at_start(stack: Stack, tmp_path: Path) -> None:
    table = MirroredTable(stack, tmp_path)
    try:
        text = table.config_path.read_text()
        table.config_path.write_text(text.replace("[embedding]", "[embedding]\n            dimension = 768"))
        daemon = table.start_daemon()
        assert daemon.process.wait(60) != 0
        assert "768" in daemon.log.read_text()
    finally:
        table.close()


@pytest.fixture
def small_queue(stack: Stack, tmp_path: Path) -> Iterator[MirroredTable]:
    table = MirroredTable(stack, tmp_path, settings="[batching]\n            queue_changes_max = 200")
    try:
        yield table
    finally:
        table.close()


def test_a_full_queue_pauses_the_partitions_and_drops_nothing(
    small_queue: MirroredTable, stack: Stack
) -> None:
    table = small_queue
    table.connect()
    with table.daemon() as daemon:
        table.execute(
            "insert into $T select n, 'title ' || n, 'body', 'a', n from generate_series(1, 5000) n"
        )
        wait_until(lambda: daemon.metrics()["livevec_paused"] == 1, 30)
        # The read that goes over the bound, and the one that was under way, no more.
        assert daemon.metrics()[f'livevec_queue_changes{{pipeline="{table.name}"}}'] < 200 + 1000
        assert len(table.wait_equal()) == 5000
        wait_until(lambda: daemon.metrics()["livevec_paused"] == 0)


def test_a_truncate_removes_what_was_before_it_and_keeps_what_came_after(
    stack: Stack, tmp_path: Path
) -> None:
    table = MirroredTable(stack, tmp_path, partitions=3)
    try:
        table.connect()
        with table.daemon() as daemon:
            table.execute(
                "insert into $T select n, 'title ' || n, 'body', 'a', n from generate_series(1, 300) n"
            )
            table.execute("truncate $T")
            table.execute(
                "insert into $T select n, 'new ' || n, 'body', 'a', n from generate_series(250, 320) n"
            )
            assert len(table.wait_equal()) == 71
            assert daemon.outcomes()["truncated"] == 1
    finally:
        table.close()


def test_an_unchanged_toasted_column_is_read_from_the_source(mirrored: MirroredTable) -> None:
    mirrored.execute("alter table $T alter column body set storage external")
    mirrored.connect()
    with mirrored.daemon():
        mirrored.execute("insert into $T values (1, 'before', repeat('a long text. ', 500), 'c', 1)")
        mirrored.wait_equal()
        mirrored.execute("update $T set title = 'after' where id = 1")
        assert mirrored.wait_equal()["1"][0].startswith("after: a long text.")


def test_swapped_primary_keys_end_as_the_table_says(mirrored: MirroredTable) -> None:
    mirrored.connect()
    with mirrored.daemon():
        mirrored.execute("insert into $T values (1, 'one', 'b', 'c', 1), (2, 'two', 'b', 'c', 1)")
        with mirrored.db.transaction():
            for old, new in ((1, -1), (2, 1), (-1, 2)):
                mirrored.execute("update $T set id = %s where id = %s", new, old)
        mirrored.wait_equal()


def test_a_topic_that_lost_records_before_they_were_read_is_said_and_marked(mirrored: MirroredTable) -> None:
    with mirrored.daemon() as daemon:
        produce(mirrored, [envelope(key) for key in range(20)])
        wait_until(lambda: daemon.outcomes().get("embedded") == 20)
        wait_until(lambda: mirrored.committed() == {0: 20})
    produce(mirrored, [envelope(key) for key in range(20, 40)])
    admin = AdminClient({"bootstrap.servers": mirrored.addresses.kafka_bootstrap_servers})
    for done in admin.delete_records([TopicPartition(mirrored.topic, 0, 30)]).values():
        done.result()
    with mirrored.daemon() as daemon:
        wait_until(lambda: daemon.outcomes().get("embedded") == 10)
        marks = mirrored.redis.hgetall(f"lv:{mirrored.name}:reconcile")
        assert b"records_lost_before_they_were_read" in marks
        assert "records_lost_before_they_were_read" in daemon.log.read_text()
        wait_until(lambda: mirrored.committed() == {0: 40})


def test_a_topic_made_anew_is_read_from_its_beginning(mirrored: MirroredTable) -> None:
    admin = AdminClient({"bootstrap.servers": mirrored.addresses.kafka_bootstrap_servers})
    with mirrored.daemon() as daemon:
        produce(mirrored, [envelope(key) for key in range(20)])
        wait_until(lambda: mirrored.committed() == {0: 20})
        for deleted in admin.delete_topics([mirrored.topic]).values():
            deleted.result()
        wait_until(lambda: mirrored.topic not in admin.list_topics(timeout=10).topics)
        for created in admin.create_topics([NewTopic(mirrored.topic, 1, 1)]).values():
            created.result()
        produce(mirrored, [envelope(key) for key in range(100, 105)])
        wait_until(lambda: daemon.outcomes().get("embedded") == 25, 90)
        assert daemon.process.poll() is None


def test_a_document_that_the_index_cannot_take_is_told(mirrored: MirroredTable) -> None:
    metric = f'livevec_hash_indexing_failures{{pipeline="{mirrored.name}"}}'
    with mirrored.daemon() as daemon:
        wait_until(lambda: daemon.metrics().get(metric) == 0)
        key = f"lv:{mirrored.name}:1:doc:{{{mirrored.name}.00}}:foreign:0"
        mirrored.redis.hset(key, mapping={"id": "foreign", "embedding": b"too short"})
        wait_until(lambda: daemon.metrics()[metric] == 1)
        assert "documents_not_indexed" in daemon.log.read_text()

"""What PostgreSQL and Debezium really do: the facts that the rule of versions stands on.

Each test fails when a newer PostgreSQL or Debezium behaves otherwise; then `core/version` has to be thought over.
"""

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors import slot
from connectors.definition import heartbeat_topic
from daemon.core.version import LogVersion, replaces, widen_xid
from daemon.errors import ConnectorError
from daemon.source.postgres.reader import PostgresReader
from deploy.local.servers.postgres import NOBODY
from deploy.local.stack import Stack
from tests.support.captured_source import CapturedSource, Envelope, count, end_offset
from tests.support.mirrored_table import wait_until
from tests.support.postgres_cluster import PostgresCluster, postgres_cluster

Connection = psycopg.Connection[Any]
XIDS_OF_A_LOG_SEGMENT = 1 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    with postgres_cluster(wal_sender_timeout="5s") as cluster:
        yield cluster


@contextmanager
def capturing(stack: Stack, dsn: str, **settings: str) -> Iterator[CapturedSource]:
    """The table $S_t (id, title), captured; without messages, whose transactions would stand between ours."""
    captured = CapturedSource(stack.addresses(), dsn)
    captured.execute("create table $S_t (id int primary key, title text)")
    captured.pipeline("$S_t", "{title}")
    try:
        captured.start({**captured.definition(), "heartbeat.action.query": "SELECT 1", **settings})
        yield captured
    finally:
        captured.stop()


@pytest.fixture
def captured(stack: Stack, cluster: PostgresCluster) -> Iterator[CapturedSource]:
    with capturing(stack, cluster.dsn) as captured:
        # The first transaction after a start has no sequence[0]; the facts are about the others.
        captured.execute("insert into $S_t values (0, 'first')")
        captured.envelopes("$S_t", count(1))
        yield captured


@pytest.fixture
async def reader(captured: CapturedSource) -> AsyncIterator[PostgresReader]:
    reader = PostgresReader(captured.source)
    yield reader
    await reader.close()


def version(envelope: Envelope) -> LogVersion:
    commit_lsn, lsn = envelope.sequence
    assert commit_lsn is not None
    return LogVersion(0, commit_lsn, lsn, envelope.xid)


def has(key: int, operation: str) -> Callable[[list[Envelope]], bool]:
    return lambda found: any(one.key == {"id": key} and one.operation == operation for one in found)


def top_xid(connection: Connection) -> int:
    row = connection.execute("select pg_current_xact_id()::text::int8").fetchone()
    assert row is not None
    return int(row[0])


def waits_for_a_lock(captured: CapturedSource, pid: int) -> bool:
    return captured.execute("select wait_event_type from pg_stat_activity where pid = %s", [pid]) == [
        ("Lock",)
    ]


def test_the_lsns_of_one_key_may_run_against_the_order_of_the_commits(
    captured: CapturedSource, cluster: PostgresCluster
) -> None:
    """COPY logs its rows, then looks for the key, and so waits for a delete that is logged after them."""
    captured.execute("insert into $S_t values (1, 'old'), (2, 'old')")
    table = f"{captured.name}_t"
    with cluster.connect(autocommit=False) as deleting, cluster.connect() as copying:

        def copy() -> None:
            with copying.cursor().copy(f"copy {table} from stdin") as stream:
                stream.write("2\tnew\n1\tnew\n")

        deleting.execute(f"delete from {table} where id = 2")
        thread = threading.Thread(target=copy)
        thread.start()
        wait_until(lambda: waits_for_a_lock(captured, copying.info.backend_pid), 20)
        deleting.execute(f"delete from {table} where id = 1")
        deleting.commit()
        thread.join(20)
    assert captured.execute("select title from $S_t where id = 1") == [("new",)]
    found = captured.envelopes("$S_t", lambda found: len([one for one in found if one.operation == "c"]) == 5)
    deleted, inserted = [one for one in found if one.key == {"id": 1} and one.value is not None][-2:]
    assert (deleted.operation, inserted.operation) == ("d", "c")
    # By the LSN of the change alone, the delete would be the newer one and the row would be gone.
    assert inserted.lsn < deleted.lsn
    assert inserted.sequence[0] > deleted.sequence[0]  # type: ignore[operator]
    assert replaces(version(inserted), version(deleted))
    assert not replaces(version(deleted), version(inserted))


def test_the_first_transaction_after_lost_offsets_does_not_tell_its_place(captured: CapturedSource) -> None:
    (first,) = captured.envelopes("$S_t", count(1))
    # Else the slot would send that transaction once more, and it would be the first.
    wait_until(lambda: (slot.read(captured.source).confirmed_lsn or 0) > first.lsn, 20)
    captured.client.forget_offsets(captured.name)
    captured.client.resume(captured.name)
    captured.client.wait_until_streaming(captured.source, 60)
    with captured.db.transaction():
        captured.execute("insert into $S_t values (1, 'a')")
        captured.execute("insert into $S_t values (2, 'b')")
    captured.execute("insert into $S_t values (3, 'c')")
    found = captured.envelopes("$S_t", has(3, "c"))
    by_key = {one.key["id"]: one.sequence[0] for one in found if one.key}
    assert by_key[1] is None
    assert by_key[2] is None
    assert by_key[3] is not None


async def test_a_commit_is_in_the_log_before_it_is_visible(
    captured: CapturedSource, cluster: PostgresCluster, reader: PostgresReader
) -> None:
    """With synchronous replication even long before: here the standby never answers."""
    table = await reader.schema(f"public.{captured.name}_t")
    names = "alter system set synchronous_standby_names = "
    captured.execute("set synchronous_commit = local")
    captured.execute(f"{names}'nobody'")
    captured.execute("select pg_reload_conf()")
    wait_until(lambda: captured.execute("show synchronous_standby_names") == [("nobody",)], 10)
    with cluster.connect() as committing:
        sql = f"insert into {table.name} values (1, 'stuck')"
        thread = threading.Thread(target=lambda: committing.execute(sql))
        try:
            thread.start()
            stuck = captured.envelopes("$S_t", has(1, "c"))[-1]
            read = await reader.reread(table, [("1",)], ["title"])
            assert read.rows == ()
            assert not read.version.sees(stuck.xid)
            # So an absence that was read after the change arrived must not win over it.
            assert replaces(version(stuck), read.version)
            assert not replaces(read.version, version(stuck))
        finally:
            captured.execute(f"{names}''")
            captured.execute("select pg_reload_conf()")
            thread.join(20)
    after = await reader.reread(table, [("1",)], ["title"])
    assert [row["title"] for row in after.rows] == ["stuck"]
    assert replaces(after.version, version(stuck))


async def test_a_prepared_transaction_is_running_until_its_commit_and_keeps_its_xid(
    captured: CapturedSource, cluster: PostgresCluster, reader: PostgresReader
) -> None:
    with cluster.connect() as preparing:
        preparing.execute("begin")
        number = top_xid(preparing)
        preparing.execute(f"insert into {captured.name}_t values (1, 'prepared')")
        preparing.execute("prepare transaction 'p'")
    captured.execute("insert into $S_t values (2, 'later')")
    between = await reader.snapshot()
    assert number in between.xip
    assert not has(1, "c")(captured.envelopes("$S_t", has(2, "c")))
    captured.execute("commit prepared 'p'")
    found = captured.envelopes("$S_t", has(1, "c"))
    prepared = next(one for one in found if one.key == {"id": 1})
    later = next(one for one in found if one.key == {"id": 2})
    assert prepared.xid == number
    assert (await reader.snapshot()).sees(number)
    # Its place in the log is that of COMMIT PREPARED, its record is older.
    assert prepared.lsn < later.lsn
    assert version(prepared).commit_lsn > version(later).commit_lsn


async def test_savepoints_show_as_their_top_transaction_in_the_log_and_in_snapshots(
    captured: CapturedSource, cluster: PostgresCluster, reader: PostgresReader
) -> None:
    table = f"{captured.name}_t"
    with cluster.connect(autocommit=False) as working:
        number = top_xid(working)
        working.execute("savepoint one")
        working.execute(f"insert into {table} values (1, 'inner')")
        working.execute("savepoint two")
        working.execute(f"insert into {table} values (2, 'innermost')")
        captured.execute("insert into $S_t values (9, 'beside')")
        running = await reader.snapshot()
        assert running.xip == (number,)
    rows = dict(captured.execute("select id, xmin::text::int8 from $S_t where id in (1, 2)"))
    assert number not in rows.values()
    found = captured.envelopes("$S_t", has(2, "c"))
    assert {one.key["id"]: one.xid for one in found if one.key and one.key["id"] in (1, 2)} == {
        1: number,
        2: number,
    }
    # By the rows' own xids, one that the snapshot could not see would count as seen.
    assert running.sees(rows[1])
    assert not running.sees(number)


async def test_a_rewrite_of_the_table_while_a_chunk_is_read(
    captured: CapturedSource, cluster: PostgresCluster, reader: PostgresReader
) -> None:
    """ALTER TABLE writes a new file whose rows no older snapshot sees: only a lock before the snapshot helps."""
    name = f"{captured.name}_t"
    with cluster.connect(autocommit=False) as altering, cluster.connect(autocommit=False) as reading:
        reading.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reading.execute("select pg_current_snapshot()")
        altering.execute(f"alter table {name} alter id type int8")
        altering.commit()
        assert reading.execute(f"select count(*) from {name}").fetchone() == (0,)
    assert captured.execute("select count(*) from $S_t") == [(1,)]

    table = await reader.schema(f"public.{name}")
    with cluster.connect(autocommit=False) as altering:
        altering.execute(f"alter table {name} add filled int default random(1, 9)")
        altered = threading.Timer(0.5, altering.commit)
        altered.start()
        read = await reader.chunk(table, None, 10, ["title"])
        altered.join()
    assert [row["title"] for row in read.rows] == ["first"]


def test_a_slot_made_anew_makes_the_task_fail_under_trust_offset(
    stack: Stack, cluster: PostgresCluster
) -> None:
    with capturing(stack, cluster.dsn) as captured:
        _lose_a_change_with_the_slot(captured)
        with pytest.raises(ConnectorError, match="no longer available on the server"):
            captured.start()


def test_a_slot_made_anew_goes_unnoticed_under_trust_slot(stack: Stack, cluster: PostgresCluster) -> None:
    with capturing(stack, cluster.dsn) as captured:
        _lose_a_change_with_the_slot(captured)
        captured.start({**captured.definition(), "offset.mismatch.strategy": "trust_slot"})
        captured.execute("insert into $S_t values (3, 'after')")
        found = captured.envelopes("$S_t", has(3, "c"))
        assert 2 not in [one.key["id"] for one in found if one.key]


def test_a_slot_that_was_moved_ahead_goes_unnoticed_even_under_trust_offset(
    stack: Stack, cluster: PostgresCluster
) -> None:
    """So the daemon itself must compare the slot's confirmed position with the last one that it read."""
    with capturing(stack, cluster.dsn) as captured:
        captured.execute("insert into $S_t values (1, 'before')")
        (last,) = captured.envelopes("$S_t", count(1))
        captured.client.delete(captured.source, with_slot=False)
        wait_until(lambda: not slot.read(captured.source).active, 20)
        captured.execute("insert into $S_t values (2, 'lost')")
        captured.execute(
            "select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [captured.source.slot_name]
        )
        moved = slot.read(captured.source)
        assert moved is not None
        assert moved.confirmed_lsn is not None
        assert moved.confirmed_lsn > last.lsn
        captured.start()
        captured.execute("insert into $S_t values (3, 'after')")
        found = captured.envelopes("$S_t", has(3, "c"))
        assert 2 not in [one.key["id"] for one in found if one.key]


def _lose_a_change_with_the_slot(captured: CapturedSource) -> None:
    captured.execute("insert into $S_t values (1, 'before')")
    captured.envelopes("$S_t", count(1))
    captured.client.delete(captured.source, with_slot=False)
    assert slot.drop(captured.source, 20)
    captured.execute("insert into $S_t values (2, 'lost')")
    captured.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [captured.source.slot_name])


def test_heartbeats_go_on_while_the_log_stands_still_and_messages_do_not(
    stack: Stack, cluster: PostgresCluster
) -> None:
    """So only a message shows that all which was committed before it has arrived."""
    with capturing(stack, cluster.dsn) as captured:
        captured.client.apply(captured.name, captured.definition())
        captured.client.wait_until_streaming(captured.source, 60)
        heartbeats, messages = heartbeat_topic(captured.source), captured.source.message_topic
        wait_until(lambda: end_offset(captured.kafka, messages), 20)
        ((pid,),) = captured.execute(
            "select active_pid from pg_replication_slots where slot_name = %s", [captured.source.slot_name]
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            captured.execute("insert into $S_t values (1, 'stuck')")
            written = end_offset(captured.kafka, messages)
            beaten = end_offset(captured.kafka, heartbeats)
            assert beaten is not None
            # Below wal_sender_timeout, after which the connection would be given up.
            wait_until(lambda: (end_offset(captured.kafka, heartbeats) or 0) >= beaten + 3, 20)
            assert end_offset(captured.kafka, messages) == written
        finally:
            os.kill(pid, signal.SIGCONT)
        captured.envelopes("$S_t", count(1))
        wait_until(lambda: end_offset(captured.kafka, messages) != written, 20)


def test_while_the_publication_is_missing_changes_are_lost_without_an_error(
    captured: CapturedSource,
) -> None:
    """PostgreSQL 18 only logs a warning; hence the schema's `publication`, which shows that it was made anew."""
    publication = captured.source.publication_name
    captured.execute(f"drop publication {publication}")
    captured.execute("insert into $S_t values (1, 'lost')")
    captured.execute(f"create publication {publication} for table $S_t")
    captured.execute("insert into $S_t values (2, 'after')")
    found = captured.envelopes("$S_t", has(2, "c"), 60)
    assert 1 not in [one.key["id"] for one in found if one.key]
    status = captured.client.status(captured.name)
    assert status is not None
    assert not status.failed


def test_a_swap_under_a_deferrable_key_ends_with_a_delete_of_a_row_that_is_there(
    captured: CapturedSource,
) -> None:
    captured.execute("alter table $S_t drop constraint $S_t_pkey, add primary key (id) deferrable")
    captured.execute("alter table $S_t replica identity full")
    captured.execute("insert into $S_t values (1, 'a'), (2, 'b')")
    captured.execute("update $S_t set id = 3 - id where id in (1, 2)")
    assert captured.execute("select count(*) from $S_t where id in (1, 2)") == [(2,)]
    found = captured.envelopes("$S_t", lambda found: len([one for one in found if one.operation == "c"]) == 5)
    of_the_swap = [(one.operation, one.key["id"]) for one in found[3:] if one.key and one.value]
    assert of_the_swap == [("d", 1), ("c", 2), ("d", 2), ("c", 1)]


async def test_xids_arrive_modulo_2_to_the_32_and_an_anchor_widens_them(stack: Stack) -> None:
    with postgres_cluster(autovacuum="off") as cluster:
        _move_next_xid(cluster, 2**32 - 60)
        with capturing(stack, cluster.dsn) as captured:
            captured.execute("alter table $S_t add wide int8 default pg_current_xact_id()::text::int8")
            reader = PostgresReader(captured.source)
            anchor = await reader.anchor()
            assert 2**32 - 60 <= anchor.xid < 2**32
            for number in range(100):
                captured.execute("insert into $S_t (id) values (%s)", [number])
            found = captured.envelopes("$S_t", has(99, "c"))
            narrow = [one.xid for one in found]
            wide = [one.after["wide"] for one in found]
            assert wide == sorted(wide)
            assert wide[0] < 2**32 < wide[-1]
            assert narrow == [xid % 2**32 for xid in wide]
            assert [widen_xid(one.xid, 0, one.lsn, [anchor]) for one in found] == wide
            snapshot = await reader.snapshot()
            assert snapshot.xmax > 2**32
            assert all(snapshot.sees(xid) for xid in wide)
            await reader.close()


def _move_next_xid(cluster: PostgresCluster, target: int) -> None:
    """In steps below 2^31, each followed by a freeze: rows must never be more than that behind."""
    for xid in (*range(2 * 10**9, target, 2 * 10**9), target):
        with cluster.connect() as connection:
            databases = connection.execute("select datname from pg_database where datallowconn").fetchall()
            connection.execute("update pg_database set datallowconn = true where datname = 'template0'")
        for (name,) in [*databases, ("template0",)]:
            with psycopg.connect(cluster.dsn.rsplit("/", 1)[0] + f"/{name}", autocommit=True) as connection:
                connection.execute("vacuum (freeze)")
        cluster.stop()
        cluster.tool("pg_resetwal", "-x", str(xid), "-D", str(cluster.data))
        segment = cluster.data / "pg_xact" / f"{xid // XIDS_OF_A_LOG_SEGMENT:04X}"
        _write_zeros(segment, XIDS_OF_A_LOG_SEGMENT // 4)
        cluster.start(autovacuum="off")


def _write_zeros(path: Path, size: int) -> None:
    path.write_bytes(b"\0" * size)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)

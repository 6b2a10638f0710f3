"""Reads of the source against a real PostgreSQL: snapshots, barrier, anchors, failures and their classes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from daemon.core.version import LogVersion, SnapshotVersion, replaces
from daemon.errors import RetryLater, StopPipeline
from daemon.settings import PostgresSource
from daemon.source.postgres.failures import _RETRIED_CLASSES, failure
from daemon.source.postgres.reader import BlockingTransaction, PostgresReader
from tests.support.postgres_cluster import PostgresCluster, postgres_cluster

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgresCluster]:
    with postgres_cluster() as cluster:
        yield cluster


@pytest.fixture
def db(cluster: PostgresCluster) -> Iterator[Connection]:
    with cluster.connect() as connection:
        for (left,) in connection.execute("select gid from pg_prepared_xacts").fetchall():
            connection.execute(f"rollback prepared '{left}'")
        connection.execute("drop table if exists t cascade")
        connection.execute("create table t (id int primary key, title text)")
        connection.execute("insert into t select i, 'title ' || i from generate_series(1, 1000) i")
        yield connection


@pytest.fixture
async def reader(cluster: PostgresCluster, db: Connection) -> AsyncIterator[PostgresReader]:
    reader = PostgresReader(source(cluster.dsn))
    yield reader
    await reader.close()


def source(dsn: str, **settings: Any) -> PostgresSource:
    return PostgresSource(name="own", dsn=SecretStr(dsn), **{"era": 3, "timeout_s": 2, **settings})


def xid(connection: Connection) -> int:
    row = connection.execute("select pg_current_xact_id()::text::int8").fetchone()
    assert row is not None
    return int(row[0])


async def test_a_missing_row_is_absent_at_the_snapshot_of_those_that_are_there(
    reader: PostgresReader,
) -> None:
    table = await reader.schema("public.t")
    read = await reader.reread(table, [("1",), ("5000",)], ["title"])
    assert read.rows == ({"id": 1, "title": "title 1"},)
    assert read.version.era == 3


async def test_the_version_sees_exactly_what_the_rows_show(
    cluster: PostgresCluster, db: Connection, reader: PostgresReader
) -> None:
    table = await reader.schema("public.t")
    with cluster.connect(autocommit=False) as running, cluster.connect(autocommit=False) as ended:
        running.execute("update t set title = 'running' where id = 1")
        ended.execute("update t set title = 'ended' where id = 2")
        one, other = xid(running), xid(ended)
        ended.commit()
        read = await reader.reread(table, [("1",), ("2",)], ["title"])
        assert [row["title"] for row in read.rows] == ["title 1", "ended"]
        assert (read.version.sees(one), read.version.sees(other)) == (False, True)
        running.rollback()


async def test_all_chunks_together_are_the_table(reader: PostgresReader) -> None:
    table = await reader.schema("public.t")
    found, after = [], None
    while rows := (await reader.chunk(table, after, 300, ["title"])).rows:
        found += [row["id"] for row in rows]
        after = table.key_of(rows[-1])
    assert found == list(range(1, 1001))


async def test_ranges_of_keys_cut_the_table_into_parts_without_gap_or_overlap(
    db: Connection, reader: PostgresReader
) -> None:
    db.execute("analyze t")
    table = await reader.schema("public.t")
    assert await reader.count_estimate(table) == 1000
    bounds = await reader.key_ranges(table, 4)
    assert len(bounds) == 3
    found = []
    for after, until in zip([None, *bounds], [*bounds, None], strict=True):
        part = await reader.chunk(table, after, 1000, [], until=until)
        assert 100 < len(part.rows) < 500
        found += [row["id"] for row in part.rows]
    assert found == list(range(1, 1001))


async def test_a_condition_narrows_a_chunk_percent_signs_too(reader: PostgresReader) -> None:
    table = await reader.schema("public.t")
    read = await reader.chunk(table, ("1",), 10, [], where="title like '%99' or id = 5")
    assert [row["id"] for row in read.rows] == [5, 99, 199, 299, 399, 499, 599, 699, 799, 899]


async def test_a_composite_key_is_read_in_the_index_order(db: Connection, reader: PostgresReader) -> None:
    db.execute("create table pairs (b int, a text, primary key (a, b))")
    try:
        db.execute("insert into pairs select i % 3, chr(97 + i / 3) from generate_series(0, 8) i")
        table = await reader.schema("public.pairs")
        assert table.key == ("a", "b")
        read = await reader.chunk(table, ("a", "1"), 3, [])
        assert [table.key_of(row) for row in read.rows] == [("a", "2"), ("b", "0"), ("b", "1")]
        read = await reader.reread(table, [("c", "2"), ("a", "0"), ("c", "9")], [])
        assert {table.key_of(row) for row in read.rows} == {("c", "2"), ("a", "0")}
    finally:
        db.execute("drop table pairs")


async def test_a_partitioned_table_is_read_whole_an_inherited_one_alone(
    db: Connection, reader: PostgresReader
) -> None:
    db.execute("drop table t")
    db.execute("create table t (id int primary key) partition by range (id)")
    db.execute("create table t_1 partition of t for values from (0) to (10)")
    db.execute("create table t_2 partition of t for values from (10) to (20)")
    db.execute("insert into t values (1), (11)")
    db.execute("create table parent (id int primary key)")
    db.execute("create table child () inherits (parent)")
    db.execute("insert into parent values (1)")
    db.execute("insert into child values (2)")
    try:
        table = await reader.schema("public.t")
        assert (table.partitioned, len(table.partitions), table.filenode) == (True, 2, None)
        assert [row["id"] for row in (await reader.chunk(table, None, 10, [])).rows] == [1, 11]
        parent = await reader.schema("public.parent")
        assert [row["id"] for row in (await reader.chunk(parent, None, 10, [])).rows] == [1]
    finally:
        db.execute("drop table child, parent")


async def test_the_barrier_waits_for_what_was_running_and_names_it(
    cluster: PostgresCluster, db: Connection, reader: PostgresReader
) -> None:
    seen: list[list[BlockingTransaction]] = []
    with cluster.connect(autocommit=False, application_name="slow job") as running:
        running.execute("savepoint s")
        running.execute("update t set title = 'x' where id = 1")
        number, pid = xid(running), running.info.backend_pid

        def on_wait(blocking: list[BlockingTransaction]) -> None:
            seen.append(blocking)
            if len(seen) == 3:
                running.commit()

        version = await asyncio.wait_for(reader.barrier(on_wait, 0.01), 20)
    assert version.sees(number)
    assert version.xmin > number
    (blocking,) = seen[0]
    assert (blocking.xid, blocking.application, blocking.pid) == (
        number,
        "slow job",
        pid,
    )
    assert "pg_terminate_backend" in str(blocking)


async def test_the_barrier_waits_for_a_prepared_transaction(db: Connection, reader: PostgresReader) -> None:
    db.execute("begin; update t set title = 'x' where id = 1; prepare transaction 'left behind'")
    seen: list[list[BlockingTransaction]] = []

    def on_wait(blocking: list[BlockingTransaction]) -> None:
        seen.append(blocking)
        db.execute("rollback prepared 'left behind'")

    await asyncio.wait_for(reader.barrier(on_wait, 0.01), 20)
    assert [blocking.prepared_as for blocking in seen[0]] == ["left behind"]


async def test_the_barrier_does_not_wait_for_a_later_transaction(
    cluster: PostgresCluster, reader: PostgresReader
) -> None:
    first = await reader.barrier(lambda _: None, 0.01)
    with cluster.connect(autocommit=False) as running:
        later = xid(running)
        assert not first.sees(later)


async def test_an_anchor_lies_beside_the_xids_of_its_moment(db: Connection, reader: PostgresReader) -> None:
    before = xid(db)
    anchor = await reader.anchor()
    row = db.execute("select (pg_current_wal_lsn() - '0/0')::int8").fetchone()
    assert row is not None
    assert anchor.era == 3
    assert before < anchor.xid <= xid(db)
    assert 0 < anchor.lsn <= row[0]


async def test_snapshots_follow_one_another(db: Connection, reader: PostgresReader) -> None:
    first = await reader.snapshot()
    number = xid(db)
    second = await reader.snapshot()
    assert (first.sees(number), second.sees(number)) == (False, True)
    assert replaces(second, first)
    assert not replaces(first, second)
    assert replaces(LogVersion(3, 0, 0, number), first)
    assert not replaces(LogVersion(3, 0, 0, number), second)


async def test_the_identity_names_the_system_and_its_timeline(
    cluster: PostgresCluster, reader: PostgresReader
) -> None:
    with cluster.connect() as connection:
        row = connection.execute("select system_identifier from pg_control_system()").fetchone()
    assert row is not None
    identity = await reader.identity()
    assert (identity.system_identifier, identity.timeline, identity.in_recovery) == (row[0], 1, False)


async def test_a_standby_is_not_read_and_after_its_promotion_has_the_next_timeline(
    cluster: PostgresCluster,
) -> None:
    with postgres_cluster() as standby:
        standby.stop()
        standby.follow(cluster)
        standby.start()
        reader = PostgresReader(source(standby.dsn))
        identity = await reader.identity()
        assert (identity.in_recovery, identity.timeline) == (True, 1)
        with pytest.raises(StopPipeline, match="target_session_attrs=read-write"):
            await reader.snapshot()
        standby.tool("pg_ctl", "promote", "-w", "-D", str(standby.data))
        assert isinstance(await reader.snapshot(), SnapshotVersion)
        after = await reader.identity()
        assert (after.system_identifier, after.in_recovery, after.timeline) == (
            identity.system_identifier,
            False,
            2,
        )
        await reader.close()


async def test_a_lost_connection_is_retried_later_and_then_replaced(
    db: Connection, reader: PostgresReader
) -> None:
    await reader.snapshot()
    ended = db.execute(
        "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where application_name = 'livevec own'"
    ).fetchone()
    assert ended == (1,)
    with pytest.raises(RetryLater):
        await reader.snapshot()
    assert isinstance(await reader.snapshot(), SnapshotVersion)


async def test_a_server_that_falls_silent_is_retried_later(db: Connection, reader: PostgresReader) -> None:
    await reader.snapshot()
    row = db.execute("select pid from pg_stat_activity where application_name = 'livevec own'").fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(RetryLater, match="does not answer"):
            await reader.snapshot()
        assert time.monotonic() - started < 15
        assert isinstance(await reader.snapshot(), SnapshotVersion)
    finally:
        os.kill(row[0], signal.SIGCONT)


async def test_a_server_that_is_away_is_retried_later() -> None:
    reader = PostgresReader(source("postgresql://u@127.0.0.1:9/x"))
    with pytest.raises(RetryLater, match="cannot be reached"):
        await reader.snapshot()


async def test_a_server_that_turns_us_away_is_retried_with_its_own_words(cluster: PostgresCluster) -> None:
    reader = PostgresReader(source(make_conninfo(cluster.dsn, dbname="nowhere")))
    with pytest.raises(RetryLater, match='database "nowhere" does not exist'):
        await reader.snapshot()


async def test_a_table_that_is_locked_is_retried_later(
    cluster: PostgresCluster, db: Connection, reader: PostgresReader
) -> None:
    table = await reader.schema("public.t")
    with cluster.connect(autocommit=False) as other:
        other.execute("lock table t in access exclusive mode")
        with pytest.raises(RetryLater, match="55P03"):
            await reader.reread(table, [("1",)], ["title"])
    assert len((await reader.reread(table, [("1",)], ["title"])).rows) == 1


async def test_a_changed_table_stops_the_pipeline_with_what_to_do(
    db: Connection, reader: PostgresReader
) -> None:
    table = await reader.schema("public.t")
    with pytest.raises(StopPipeline, match=r"'public.nope' does not exist"):
        await reader.schema("public.nope")
    with pytest.raises(StopPipeline, match="the nearest is 'title'"):
        await reader.reread(table, [("1",)], ["titel"])
    with pytest.raises(StopPipeline, match=r"22P02.*start the daemon again"):
        await reader.reread(table, [("not a number",)], ["title"])
    db.execute("alter table t alter title type int using 1")
    with pytest.raises(StopPipeline, match=r"column 'title' of public.t has changed its type"):
        await reader.reread(table, [("1",)], ["title"])
    db.execute("alter table t drop title")
    with pytest.raises(StopPipeline, match=r"42703.*bring the column back"):
        await reader.reread(table, [("1",)], ["title"])
    db.execute("drop table t")
    with pytest.raises(StopPipeline, match=r"42P01.*bring the table back"):
        await reader.reread(table, [("1",)], ["title"])


async def test_the_schema_shows_whether_the_table_was_rewritten_or_left_its_publication(
    db: Connection, reader: PostgresReader
) -> None:
    db.execute("drop publication if exists livevec_own")
    first = await reader.schema("public.t")
    assert first.publication == ()
    db.execute("create publication livevec_own for table t")
    published = await reader.schema("public.t")
    assert len(published.publication) == 2
    db.execute("alter publication livevec_own drop table t")
    db.execute("alter publication livevec_own add table t")
    again = await reader.schema("public.t")
    assert again.publication[0] == published.publication[0]
    assert again.publication[1] != published.publication[1]
    db.execute("alter table t alter id type int8")
    rewritten = await reader.schema("public.t")
    assert rewritten.oid == again.oid
    assert rewritten.filenode != again.filenode


async def test_hidden_rows_are_an_error_and_not_deletes(cluster: PostgresCluster, db: Connection) -> None:
    db.execute("create role poor login")
    db.execute("grant select on t to poor")
    db.execute("alter table t enable row level security")
    reader = PostgresReader(source(make_conninfo(cluster.dsn, user="poor")))
    try:
        table = await reader.schema("public.t")
        with pytest.raises(StopPipeline, match=r"42501.*BYPASSRLS"):
            await reader.reread(table, [("1",)], ["title"])
    finally:
        await reader.close()
        db.execute("drop owned by poor")
        db.execute("drop role poor")


async def test_more_readers_than_connections_wait_their_turn(reader: PostgresReader, db: Connection) -> None:
    table = await reader.schema("public.t")
    reads = await asyncio.gather(*(reader.reread(table, [(str(n),)], ["title"]) for n in range(1, 40)))
    assert [read.rows[0]["id"] for read in reads] == list(range(1, 40))
    opened = db.execute(
        "select count(*) from pg_stat_activity where application_name = 'livevec own'"
    ).fetchone()
    assert opened == (2,)


def test_every_class_of_error_that_psycopg_knows_was_decided() -> None:
    """A new class must be looked at before it falls to the default, which stops the pipeline."""
    stopping = {"01", "02", "03", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "20", "21", "22", "23", "24", "25", "26",
                "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "42", "44", "54", "F0", "HV",
                "P0", "10"}  # fmt: skip
    states = {
        error.sqlstate
        for error in vars(psycopg.errors).values()
        if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
    }
    assert {state[:2] for state in states} <= stopping | _RETRIED_CLASSES.keys()


def test_an_error_shows_no_value_of_a_row() -> None:
    error = psycopg.errors.InvalidTextRepresentation('invalid input syntax for type integer: "a secret"')
    assert "secret" not in str(failure(error, "source"))

"""A backfill makes the index equal to the table, whatever happened to either, and whatever happens meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from temporalio.client import WorkflowFailureError

from daemon.index.connection import connect
from daemon.index.layout import Layout
from daemon.index.registry import Versions
from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, wait_until
from tests.workflows.backfills import Backfills, check, editing, forget, insert
from workflows.client import reason

ROWS = 2_500


@contextmanager
def transaction(table: MirroredTable) -> Iterator[psycopg.Connection]:
    with psycopg.connect(table.addresses.postgres_dsn) as db:
        yield db


@contextmanager
def waiting_commit(table: MirroredTable, statement: str) -> Iterator[None]:
    """A statement whose commit waits for a standby that never answers, until the end."""
    names = "alter system set synchronous_standby_names = "
    table.execute("set synchronous_commit = local")
    table.execute(f"{names}'nobody'")
    table.execute("select pg_reload_conf()")
    wait_until(
        lambda: table.db.execute("show synchronous_standby_names").fetchall() == [("nobody",)],
        10,
    )
    with psycopg.connect(table.addresses.postgres_dsn, autocommit=True) as committing:
        sql = statement.replace("$T", table.name)
        thread = threading.Thread(target=lambda: committing.execute(sql))
        thread.start()
        try:
            yield
        finally:
            table.execute(f"{names}''")
            table.execute("select pg_reload_conf()")
            thread.join(20)


def put_orphan(table: MirroredTable, identifier: str) -> str:
    """A document that some older write left, and that has no row; answers its key."""
    layout = Layout(table.name, 1)
    bookkeeping, _, stem = layout.keys(identifier)
    table.redis.hset(
        f"{stem}:0", mapping={"id": identifier, "text": "left behind", "embedding": b"\0" * 1536}
    )
    table.redis.hset(bookkeeping, mapping={"v": "L:0:1:1:1", "h": "x", "m": "x", "n": "1"})
    return f"{stem}:0"


async def test_it_ends_equal_to_the_table_while_rows_change_under_it(empty: MirroredTable) -> None:
    insert(empty, 1, ROWS)
    empty.wait_equal()
    forget(empty)
    orphan = put_orphan(empty, "987654")
    backfills = await Backfills.of(empty)
    # A bound, or on a slow machine most rows were edited, and so embedded, before the backfill came to them.
    with editing(empty, ROWS, edits_max=700):
        done = await backfills.run()
    assert done.rows >= ROWS - 700
    assert done.outcomes["embedded"] > 1_000
    assert done.swept
    assert not empty.redis.exists(orphan)
    empty.wait_equal()
    assert (await check(empty)).ok


async def test_the_row_of_a_transaction_that_committed_after_its_chunk_was_read_wins(
    empty: MirroredTable,
) -> None:
    insert(empty, 1, 300)
    backfills = await Backfills.of(empty)
    handle = await backfills.start(rate=100.0)
    await backfills.phase(handle, "copying")
    with transaction(empty) as db:
        db.execute(f"update {empty.name} set body = 'the newest' where id = 300")
        db.execute(f"delete from {empty.name} where id = 299")
        await handle.execute_update("throttle", 0.0)
        assert (await handle.result()).rows == 300
        assert empty.indexed()["299"] == ("title 299: about the number 299", "c5", "74.75")
        db.commit()
    wait_until(lambda: "299" not in empty.indexed())
    assert empty.wait_equal()["300"][0] == "title 300: the newest"


async def test_a_commit_that_waits_for_a_standby_is_overwritten_by_no_row_read_before_it_is_visible(
    empty: MirroredTable,
) -> None:
    """The change is in the log, and applied from there, long before the row can be read."""
    insert(empty, 1, 300)
    empty.wait_equal()
    backfills = await Backfills.of(empty)
    handle = await backfills.start(rate=100.0)
    await backfills.phase(handle, "copying")
    with waiting_commit(empty, "update $T set body = 'the newest' where id in (1, 300)"):
        wait_until(lambda: empty.indexed()["300"][0] == "title 300: the newest")
        assert empty.expected()["300"][0] == "title 300: about the number 300"
        await handle.execute_update("throttle", 0.0)
        assert (await handle.result()).rows == 300
        assert {empty.indexed()[key][0] for key in ("1", "300")} == {
            "title 1: the newest",
            "title 300: the newest",
        }
    assert empty.wait_equal()["300"][0] == "title 300: the newest"


async def test_it_waits_for_what_ran_before_it_and_names_it_in_the_details(empty: MirroredTable) -> None:
    insert(empty, 1, 50)
    empty.wait_equal()
    backfills = await Backfills.of(empty)
    with transaction(empty) as db:
        db.execute(f"update {empty.name} set body = 'from before' where id = 7")
        handle = await backfills.start()
        pid = f"process {db.info.backend_pid}"
        found = await backfills.until(handle, lambda progress: pid in progress.note, "it is named")
        assert found.phase == "waiting"
        assert f"{pid} (postgres" in await backfills.details(handle)
        assert found.done == 0
        db.commit()
    assert (await handle.result()).rows == 50
    assert empty.wait_equal()["7"][0] == "title 7: from before"


async def test_a_condition_backfills_its_rows_alone_and_removes_no_orphan(empty: MirroredTable) -> None:
    insert(empty, 1, 200)
    empty.wait_equal()
    forget(empty)
    orphan = put_orphan(empty, "987654")
    empty.redis.hset(f"lv:{empty.name}:reconcile", "redis_went_back", "1.0")
    backfills = await Backfills.of(empty)
    done = await backfills.run(where="category = 'c1' and title like '%9'")
    matching = {
        key for key, row in empty.expected().items() if row[1] == "c1" and row[0].split(":")[0][-1] == "9"
    }
    assert (done.rows, done.swept, done.reasons) == (len(matching), None, ())
    assert empty.indexed().keys() == matching | {"987654"}
    assert empty.redis.exists(orphan)

    done = await backfills.run()
    assert (done.rows, done.swept, done.reasons) == (200, 1, ("redis_went_back",))
    assert not empty.redis.hexists(f"lv:{empty.name}:reconcile", "redis_went_back")
    assert empty.indexed() == empty.expected()


async def test_it_begins_with_the_key_that_is_given(empty: MirroredTable) -> None:
    insert(empty, 1, 200)
    empty.wait_equal()
    forget(empty)
    done = await (await Backfills.of(empty)).run(from_key="150")
    assert (done.rows, done.swept) == (51, None)
    assert empty.indexed().keys() == {str(key) for key in range(150, 201)}


async def test_refused_rows_go_to_the_dead_letters_and_the_rest_goes_on(empty: MirroredTable) -> None:
    insert(empty, 1, 200)
    empty.wait_equal()
    before = len(empty.dead_letters())
    empty.execute("update $T set body = repeat('x', 400) where id in (20, 130)")
    wait_until(lambda: len(empty.dead_letters()) == before + 2)
    forget(empty)
    done = await (await Backfills.of(empty)).run()
    assert (done.rows, done.outcomes) == (200, {"embedded": 198, "dead_lettered": 2})
    letters = empty.dead_letters()[before + 2 :]
    assert {(one["livevec.document"], one["livevec.reason"]) for one in letters} == {
        ("20", "oversized_text"),
        ("130", "oversized_text"),
    }
    assert len(empty.indexed()) == 198


async def test_rows_that_cannot_be_read_go_to_the_dead_letters_and_nothing_is_swept(
    empty: MirroredTable,
) -> None:
    insert(empty, 1, 200)
    empty.wait_equal()
    before = len(empty.dead_letters())
    forget(empty)
    done = await (await Backfills.of(empty)).run(where="100 / (id - 77) <> 100 / (id - 133) + 1000")
    assert (done.rows, done.unreadable, done.swept) == (200, 2, None)
    assert done.outcomes == {"embedded": 198, "dead_lettered": 2}
    letters = empty.dead_letters()[before:]
    assert [one["livevec.document"] for one in letters] == ["77", "133"]
    assert {one["livevec.reason"] for one in letters} == {"unreadable"}
    assert empty.indexed().keys() == empty.expected().keys() - {"77", "133"}


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ({"where": "no_such_column = 1"}, "no_such_column"),
        ({"where": "id = 'x'"}, "--where"),
        ({"from_key": "x"}, "is no key of public."),
    ],
)
async def test_what_a_person_must_correct_fails_at_once(
    empty: MirroredTable, order: dict[str, str], told: str
) -> None:
    backfills = await Backfills.of(empty)
    with pytest.raises(WorkflowFailureError) as failed:
        await backfills.run(**order)
    assert told in reason(failed.value)


async def test_a_table_that_loses_a_column_meanwhile_fails_it_and_says_so(mirrored: MirroredTable) -> None:
    mirrored.connect()
    insert(mirrored, 1, 400)
    with mirrored.daemon():
        mirrored.wait_equal()
    with mirrored.worker() as worker:
        backfills = await Backfills.of(mirrored)
        handle = await backfills.start(rate=20.0)
        await backfills.until(handle, lambda found: found.phase == "copying", "it copies")
        worker.kill()
        mirrored.execute("alter table $T alter column category type varchar(70)")
        with mirrored.worker(), pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    assert "other columns" in reason(failed.value)
    assert f"livevec backfill {mirrored.name}" in reason(failed.value)


async def test_filling_another_version_leaves_the_one_that_readers_see_and_its_reasons(
    mirrored: MirroredTable,
) -> None:
    mirrored.connect()
    insert(mirrored, 1, 100)
    client = connect(mirrored.config.redis)
    try:
        with mirrored.daemon(), mirrored.worker():
            mirrored.wait_equal()
            versions = Versions(client, mirrored.name)
            number = (await versions.register((await versions.known()).version())).number
            mirrored.redis.hset(f"lv:{mirrored.name}:reconcile", "redis_went_back", "1.0")
            done = await (await Backfills.of(mirrored)).run(version=number)
        assert (done.version, done.rows, done.reasons) == (number, 100, ())
        assert done.swept is not None
        assert mirrored.redis.hexists(f"lv:{mirrored.name}:reconcile", "redis_went_back")
        assert len(list(mirrored.redis.scan_iter(f"lv:{mirrored.name}:{number}:doc:*"))) == 100
    finally:
        await client.aclose()


async def test_composite_keys_of_any_characters(stack: Stack, tmp_path: Path) -> None:
    ddl = "a text, b bigint, title text, body text, category text, price numeric(10,2), primary key (a, b)"
    table = MirroredTable(stack, tmp_path, ddl=ddl)
    try:
        table.connect()
        table.execute(
            "insert into $T select chr(97 + mod(n, 5)) || '/%%{', n, 't ' || n, 'b', 'c', 1"
            " from generate_series(1, %s) n",
            400,
        )
        with table.daemon(), table.worker():
            wait_until(lambda: len(table.documents()) == 400)
            forget(table)
            backfills = await Backfills.of(table)
            done = await backfills.run(from_key="c%2F%25{/200")
            assert done.rows == 40 + 80 + 80
            done = await backfills.run()
            assert (done.rows, done.unreadable) == (400, 0)
            assert (await check(table)).ok
    finally:
        table.close()

"""Reconciles by a real worker: every damage is found and mended, and changes on their way are none."""

import asyncio
import json
import random
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from daemon.core.version import LogVersion
from daemon.index.connection import connect as redis_connect
from daemon.index.layout import Layout
from daemon.index.writer import IndexWriter, Put, Result
from daemon.verify.differences import Difference as D
from daemon.verify.session import opened
from deploy.local.stack import Stack
from tests.index_damage import TO_DOCUMENTS, bookkeeping_of, key_of, lost_chunk, orphaned, surplus_chunk
from tests.mirrored_table import MirroredTable, WorkerProcess, wait_until
from workflows.activities.reconcile_model import Subject
from workflows.client import connect, progress_now
from workflows.reconcile import Reconcile, Reconciled, ReconcileOrder

ROWS = 700
LAG_S = 1.0
"""Long enough for nothing to be on its way: no daemon runs, or it is idle."""


@pytest.fixture(scope="module")
def table(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirroredTable]:
    """A table at rest, mirrored by a daemon that has ended, with a worker."""
    made = MirroredTable(stack, tmp_path_factory.mktemp("reconcile"))
    try:
        made.connect()
        made.execute(
            "insert into $T select n, 'title ' || n, 'about the number ' || n, 'c' || mod(n, 7), n / 4.0"
            f" from generate_series(1, {ROWS}) n"
        )
        with made.daemon() as daemon:
            wait_until(lambda: len(made.documents()) == ROWS)
            assert daemon.terminate() == 0
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def worker(table: MirroredTable) -> Iterator[WorkerProcess]:
    with table.worker() as running:
        yield running


@pytest.fixture(autouse=True)
def working(request: pytest.FixtureRequest) -> None:
    """The table at rest comes with a worker."""
    if "table" in request.fixturenames:
        request.getfixturevalue("worker")


def subject(table: MirroredTable, **settings: Any) -> Subject:
    return Subject(**{"pipeline": table.name, "lag_s": LAG_S, "rows_per_range": 100, **settings})


async def started(table: MirroredTable, order: ReconcileOrder) -> WorkflowHandle[Any, Reconciled]:
    client = await connect(table.config)
    return await client.start_workflow(
        Reconcile.run,
        order,
        id=f"reconcile-{table.name}-{random.randrange(10**9)}",
        task_queue=table.config.temporal.task_queue,
    )


async def reconciled(table: MirroredTable, **settings: Any) -> Reconciled:
    handle = await started(table, ReconcileOrder(subject=subject(table, **settings)))
    return await handle.result()


async def differences(table: MirroredTable) -> dict[str, frozenset[D]]:
    """What another check, whole and with vectors, finds."""
    async with opened(table.config, table.config.pipelines[0], vectors=True) as session:
        return dict((await session.check(lambda *_: None)).differing)


async def eventually(condition: Callable[[], Awaitable[Any]], deadline_s: float = 60.0) -> Any:
    ends_at = asyncio.get_running_loop().time() + deadline_s
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < ends_at, f"not within {deadline_s} s: {condition}"
        await asyncio.sleep(0.05)
    return found


async def test_every_damage_is_counted_for_what_it_is_and_mended(table: MirroredTable) -> None:
    damaged: dict[str, frozenset[D]] = {}
    for damage in TO_DOCUMENTS:
        damaged |= damage(table)
    foreign = f"lv:{table.name}:1:doc:written by hand"
    table.redis.hset(foreign, "id", "1")
    expected = Counter(kind.value for kinds in damaged.values() for kind in kinds)
    expected[D.ORPHANED.value] += 1

    seen = await reconciled(table, vectors=True)
    assert seen.tally.found == seen.tally.left == expected
    assert seen.tally.examples[D.LOST_CHUNKS] == ("13",)
    assert not seen.ok
    assert await differences(table) == damaged

    mended = await reconciled(table, vectors=True, repair=True)
    assert mended.tally.found == expected
    assert mended.tally.left == {}
    assert mended.ok
    assert (mended.tally.rows, mended.tally.documents) == (ROWS - 1, ROWS - 1)
    assert await differences(table) == {}
    assert not table.redis.exists(foreign)
    assert table.indexed() == table.expected()


async def test_without_vectors_all_is_found_that_the_digests_tell(table: MirroredTable) -> None:
    table.redis.hset(key_of(table, "20"), "text", "something else")
    table.redis.delete(bookkeeping_of(table, "21"), key_of(table, "21"))
    table.redis.hset(key_of(table, "22"), "embedding", b"short")
    assert (await reconciled(table)).tally.found == {"missing": 1, "not_indexed": 1, "wrong_vector": 1}
    assert (await reconciled(table, vectors=True, repair=True)).tally.found["stale"] == 1
    assert await differences(table) == {}


async def test_an_index_that_was_dropped_is_made_again(table: MirroredTable) -> None:
    table.redis.execute_command("FT.DROPINDEX", f"{table.name}:1")
    assert (await reconciled(table)).tally.found == {"not_indexed": ROWS - 1}
    assert (await reconciled(table, repair=True)).tally.left == {}
    assert await differences(table) == {}


async def test_where_a_reconcile_is_due_nothing_of_before_it_is_applied_any_more(
    table: MirroredTable,
) -> None:
    table.redis.hset(f"lv:{table.name}:reconcile", "partitions_changed", "1")
    told = await reconciled(table)
    assert (told.reasons, told.backfilled, told.ok) == (("partitions_changed",), False, False)
    mended = await reconciled(table, repair=True)
    assert (mended.reasons, mended.backfilled, mended.ok) == (("partitions_changed",), True, True)
    assert not table.redis.exists(f"lv:{table.name}:reconcile")

    # A record of before, of a row whose deletion never reached the log, comes late.
    redis = redis_connect(table.config.redis)
    writer = IndexWriter(redis, Layout(table.name, 1), 16)
    late = Put("777777", LogVersion(0, 10, 10, 5), "h", "m", (), ())
    assert await writer.write([late]) == [Result.SUPERSEDED]
    await redis.aclose()
    assert await differences(table) == {}


async def test_what_nothing_explains_is_an_alarm_once_with_the_remedy(
    table: MirroredTable, worker: WorkerProcess
) -> None:
    lost_chunk(table)
    before = len(alarms(worker.log))
    await reconciled(table)
    [alarm] = alarms(worker.log)[before:]
    assert alarm["found"] == alarm["left"] == {"lost_chunks": 1}
    assert alarm["remedy"] == f"livevec reconcile {table.name} --repair"
    shown = worker.metrics()
    labels = f'{{difference="lost_chunks",pipeline="{table.name}"}}'
    assert shown[f"livevec_reconcile_differences{labels}"] == 1
    assert shown[f"livevec_reconcile_left{labels}"] == 1
    await reconciled(table, repair=True)
    shown = worker.metrics()
    assert shown[f"livevec_reconcile_differences{labels}"] == 1
    assert shown[f"livevec_reconcile_left{labels}"] == 0
    assert shown[f'livevec_reconcile_last_run_timestamp_seconds{{pipeline="{table.name}"}}'] > 0
    await reconciled(table)
    assert worker.metrics()[f"livevec_reconcile_differences{labels}"] == 0
    assert len(alarms(worker.log)) == before + 2


def alarms(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "index_differed_from_its_table"]


def test_the_command_exits_with_1_until_nothing_is_left(table: MirroredTable) -> None:
    surplus_chunk(table)
    told = table.command("reconcile", table.name, "--wait", "--json")
    assert told.returncode == 1, told.stderr
    assert json.loads(told.stdout)["result"]["tally"]["found"] == {"surplus_chunks": 1}
    shown = table.command("reconcile", table.name, "--wait")
    assert shown.returncode == 1
    assert f"livevec reconcile {table.name} --repair" in shown.stdout
    assert table.command("reconcile", table.name, "--repair", "--wait").returncode == 0
    assert table.command("reconcile", table.name, "--wait").returncode == 0


# ---- schedules


def schedules(table: MirroredTable) -> list[dict[str, Any]]:
    listed = table.command("reconcile", "--list", "--json")
    assert listed.returncode == 0, listed.stderr
    found: list[dict[str, Any]] = json.loads(listed.stdout)["schedules"]
    return found


def test_the_worker_schedules_what_the_file_says_and_leaves_alone_what_a_person_made(
    table: MirroredTable,
) -> None:
    [kept] = schedules(table)
    assert kept["when"].endswith("(daemon.toml)")
    assert kept["repair"]
    assert kept["next_at"]
    assert table.command("reconcile", table.name, "--schedule", "@daily").returncode == 0
    with table.worker():
        [made] = schedules(table)
    assert made["when"].startswith("@daily")
    assert not made["repair"]
    assert table.command("reconcile", table.name, "--unschedule").returncode == 0
    assert schedules(table) == []
    with table.worker():
        [again] = schedules(table)
    assert again["when"] == kept["when"]


def test_a_schedule_that_is_none_is_refused(table: MirroredTable) -> None:
    for wrong in ("soon", "0s", "1 2"):
        refused = table.command("reconcile", table.name, "--schedule", wrong)
        assert refused.returncode == 2
        assert "no schedule" in refused.stderr


def test_a_schedule_starts_reconciles_that_repair(table: MirroredTable) -> None:
    lost_chunk(table)
    assert table.command("reconcile", table.name, "--schedule", "1s", "--repair").returncode == 0
    try:
        wait_until(lambda: table.redis.exists(key_of(table, "13")))
        assert schedules(table)[0]["runs"] >= 1
    finally:
        assert table.command("reconcile", table.name, "--unschedule").returncode == 0


# ---- beside live changes, and through failures


@contextmanager
def edited(table: MirroredTable, keys: int, per_s: int) -> Iterator[Counter[str]]:
    """Random inserts, updates and deletes of so many keys meanwhile."""
    stop, done, random_ = threading.Event(), Counter[str](), random.Random(7)

    def edit() -> None:
        while not stop.wait(1 / per_s):
            key, number = random_.randrange(1, keys + 1), sum(done.values())
            if random_.random() < 0.3:
                table.execute("delete from $T where id = %s", key)
                done["delete"] += 1
            else:
                table.execute(
                    "insert into $T values (%s, 't', %s, 'c', %s) on conflict (id) do update set body = excluded.body,"
                    " price = excluded.price",
                    key,
                    f"edit {number % 50}",
                    number % 5,
                )
                done["upsert"] += 1

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        yield done
    finally:
        stop.set()
        editor.join()


async def test_changes_on_their_way_are_no_differences_and_a_repair_beside_them_undoes_none(
    mirrored: MirroredTable,
) -> None:
    mirrored.connect()
    mirrored.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 600) n")
    with mirrored.daemon(), mirrored.worker():
        mirrored.wait_equal()
        with edited(mirrored, 600, per_s=100) as done:
            for repair in (False, True, False):
                begun = sum(done.values())
                told = await reconciled(mirrored, repair=repair, lag_s=30.0)
                assert told.tally.found == {}
                assert sum(done.values()) > begun
            mirrored.redis.delete(*[key_of(mirrored, str(key)) for key in range(1, 601)])
            mended = await reconciled(mirrored, repair=True, lag_s=30.0)
            assert mended.tally.found.keys() == {"lost_chunks"}
            assert mended.tally.left == {}
        mirrored.wait_equal()
        assert (await reconciled(mirrored)).tally.found == {}


async def test_a_change_that_its_daemon_has_yet_to_apply_is_no_difference(mirrored: MirroredTable) -> None:
    mirrored.connect()
    mirrored.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 50) n")
    with mirrored.daemon() as daemon, mirrored.worker():
        mirrored.wait_equal()
        daemon.process.send_signal(signal.SIGSTOP)
        mirrored.execute("update $T set body = 'waits' where id <= 10")
        mirrored.execute("delete from $T where id > 40")
        assert (await reconciled(mirrored, lag_s=0.0)).tally.found == {"stale": 10, "orphaned": 10}
        handle = await started(mirrored, ReconcileOrder(subject=subject(mirrored, lag_s=60.0)))

        async def checking() -> bool:
            shown = await progress_now(handle, await handle.describe())
            return shown is not None and shown.phase == "checking"

        await eventually(checking)
        daemon.process.send_signal(signal.SIGCONT)
        assert (await handle.result()).tally.found == {}


async def test_another_worker_goes_on_from_where_a_killed_one_was(mirrored: MirroredTable) -> None:
    mirrored.connect()
    mirrored.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 6000) n")
    with mirrored.daemon() as daemon:
        mirrored.wait_equal()
        assert daemon.terminate() == 0
    mirrored.redis.delete(key_of(mirrored, "1"), key_of(mirrored, "5999"))
    order = ReconcileOrder(
        subject=subject(mirrored, rows_per_range=10**6, repair=True), rate=1500.0, parallel=1
    )
    with mirrored.worker() as worker:
        handle = await started(mirrored, order)

        async def half() -> bool:
            shown = await progress_now(handle, await handle.describe())
            return shown is not None and shown.done >= 2000

        await eventually(half)
        worker.kill()
    # Checked already: seen again only by a worker that begins anew.
    mirrored.redis.delete(key_of(mirrored, "2"))
    with mirrored.worker():
        told = await handle.result()
    assert told.tally.found == {"lost_chunks": 2}
    assert told.tally.examples["lost_chunks"] == ("1", "5999")
    assert told.tally.rows == told.tally.documents == 6000
    assert await differences(mirrored) == {"2": frozenset({D.LOST_CHUNKS})}


async def test_a_paused_reconcile_goes_on_with_all_that_is_left(mirrored: MirroredTable) -> None:
    mirrored.connect()
    mirrored.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 3000) n")
    with mirrored.daemon() as daemon:
        mirrored.wait_equal()
        assert daemon.terminate() == 0
    mirrored.redis.delete(key_of(mirrored, "2999"))
    order = ReconcileOrder(subject=subject(mirrored, rows_per_range=1000), rate=600.0)
    with mirrored.worker():
        handle = await started(mirrored, order)

        async def begun() -> bool:
            shown = await progress_now(handle, await handle.describe())
            return shown is not None and shown.done > 0

        await eventually(begun)
        paused = await handle.execute_update(Reconcile.pause)
        assert paused.phase == "paused"

        async def at_rest() -> bool:
            return not (await handle.describe()).raw_description.pending_activities

        await eventually(at_rest)
        await handle.execute_update(Reconcile.throttle, 0.0)
        await handle.execute_update(Reconcile.resume)
        told = await handle.result()
    assert told.tally.rows == told.tally.documents == 3000
    assert told.tally.found == {"lost_chunks": 1}


async def test_composite_keys_of_any_characters_are_checked_in_ranges_and_mended(
    stack: Stack, tmp_path: Path
) -> None:
    ddl = "a text, b bigint, title text, body text, category text, price numeric(10,2), primary key (a, b)"
    table = MirroredTable(stack, tmp_path, ddl=ddl)
    names = ["a b", "{x}", '"q"', "*?[", "ключ", "🔑,x", "", "%2F", " ", "/", "k" * 300]
    try:
        table.connect()
        for name in names:
            table.execute(
                "insert into $T select %s, n, 't', 'body ' || n, 'c', 1 from generate_series(1, 40) n", name
            )
        with table.daemon() as daemon, table.worker():
            wait_until(lambda: len(table.documents()) == 40 * len(names))
            assert daemon.terminate() == 0
            ids = [f"{name.replace('%', '%25').replace('/', '%2F')}/20" for name in names]
            table.redis.delete(*[key_of(table, one) for one in ids])
            table.execute("delete from $T where b = 21")
            found = (await reconciled(table)).tally
            assert found.found == {"lost_chunks": len(names), "orphaned": len(names)}
            assert found.rows == 39 * len(names)
            assert (await reconciled(table, repair=True)).tally.left == {}
            assert await differences(table) == {}
    finally:
        table.close()


async def test_a_worker_that_leads_to_another_database_repairs_nothing(table: MirroredTable) -> None:
    key = f"lv:source:{table.name}:identity"
    before = table.redis.get(key)
    assert before is not None
    try:
        table.redis.set(key, json.dumps({**json.loads(before), "system": "1"}))
        refused = table.command("reconcile", table.name, "--repair", "--wait")
        assert refused.returncode == 1
        assert "another database" in refused.stderr
    finally:
        table.redis.set(key, before)


async def test_a_deleted_row_of_an_orphan_can_be_inserted_again(table: MirroredTable) -> None:
    orphaned(table)
    table.redis.hset(key_of(table, "6"), mapping=table.redis.hgetall(key_of(table, "7")))
    assert (await reconciled(table, repair=True)).tally.left == {}
    table.execute("insert into $T values (6, 'title 6', 'about the number 6', 'c6', 1.5)")
    with table.daemon() as daemon:
        table.wait_equal()
        assert daemon.terminate() == 0
    assert await differences(table) == {}

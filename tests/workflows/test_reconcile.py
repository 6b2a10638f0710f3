"""Reconciles by a real worker: every damage is found and mended, and changes on their way are none."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.core.version import LogVersion
from daemon.errors import ConfigError
from daemon.index.connection import connect as redis_connect
from daemon.index.layout import Layout
from daemon.index.writer import IndexWriter, Put, Result
from daemon.verify.differences import Difference as D
from deploy.local.stack import Stack
from tests.support.index_damage import TO_DOCUMENTS, bookkeeping_of, key_of, lost_chunk, surplus_chunk
from tests.support.mirrored_table import MirroredTable, wait_until
from tests.workflows.reconciles import differences, edited, eventually, reconciled, started, subject
from workflows.client import connect, progress_now
from workflows.reconcile import schedules
from workflows.reconcile.workflow import Reconcile, ReconcileOrder

ROWS = 1100


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


class Workers:
    """The one worker of the table at rest."""

    def __init__(self, table: MirroredTable) -> None:
        self._table = table
        self.start()

    def start(self) -> None:
        self.process = self._table.start_worker().wait_ready()


@pytest.fixture(scope="module")
def workers(table: MirroredTable) -> Workers:
    return Workers(table)


@pytest.fixture(autouse=True)
def working(request: pytest.FixtureRequest) -> None:
    """The table at rest comes with a worker."""
    if "table" in request.fixturenames:
        request.getfixturevalue("workers")


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
    table.redis.hset(f"lv:{table.name}:reconcile", "partitions_changed", "1.0")
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
    table: MirroredTable, workers: Workers
) -> None:
    worker = workers.process
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
    for arguments in (["--repair"], []):
        done = table.command("reconcile", table.name, "--wait", *arguments)
        assert done.returncode == 0, done.stderr


# ---- schedules


def listed(table: MirroredTable) -> list[dict[str, Any]]:
    shown = table.command("reconcile", "--list", "--json")
    assert shown.returncode == 0, shown.stderr
    found: list[dict[str, Any]] = json.loads(shown.stdout)["schedules"]
    return found


async def test_the_worker_schedules_what_the_file_says_and_leaves_alone_what_a_person_made(
    table: MirroredTable,
) -> None:
    client = await connect(table.config)
    [kept] = listed(table)
    assert kept["when"].endswith("(daemon.toml)")
    assert kept["repair"]
    assert kept["next_at"]
    assert table.command("reconcile", table.name, "--schedule", "@daily").returncode == 0
    await schedules.keep(client, table.config)
    [made] = listed(table)
    assert made["when"].startswith("@daily")
    assert not made["repair"]
    assert table.command("reconcile", table.name, "--unschedule").returncode == 0
    assert listed(table) == []
    await schedules.keep(client, table.config)
    again = await schedules.scheduled(client, table.name)
    assert again is not None
    assert again.when == kept["when"]
    never = table.config.pipelines[0].model_copy(update={"reconcile_every_s": 0.0})
    await schedules.keep(client, table.config.model_copy(update={"pipelines": (never,)}))
    assert await schedules.scheduled(client, table.name) is None


@pytest.mark.parametrize("wrong", ["soon", "0s", "1 2", "", "5x"])
def test_a_schedule_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="is no schedule"):
        schedules.parsed(wrong, "any")


def test_a_schedule_starts_reconciles_that_repair(table: MirroredTable) -> None:
    lost_chunk(table)
    assert table.command("reconcile", table.name, "--schedule", "1s", "--repair").returncode == 0
    try:
        wait_until(lambda: table.redis.exists(key_of(table, "13")))
        assert listed(table)[0]["runs"] >= 1
    finally:
        assert table.command("reconcile", table.name, "--unschedule").returncode == 0


# ---- beside live changes, and through failures


async def test_changes_on_their_way_are_no_differences_and_a_repair_beside_them_undoes_none(
    empty: MirroredTable,
) -> None:
    empty.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 600) n")
    empty.wait_equal()
    with edited(empty, 600, per_s=100) as done:
        for repair in (False, True, False):
            begun = sum(done.values())
            told = await reconciled(empty, repair=repair, lag_s=30.0)
            assert told.tally.found == {}
            assert sum(done.values()) > begun
        empty.redis.delete(*[key_of(empty, str(key)) for key in range(1, 601)])
        mended = await reconciled(empty, repair=True, lag_s=30.0)
        assert mended.tally.found.keys() == {"lost_chunks"}
        assert mended.tally.left == {}
    empty.wait_equal()
    assert (await reconciled(empty)).tally.found == {}


async def test_a_change_that_its_daemon_has_yet_to_apply_is_no_difference(empty: MirroredTable) -> None:
    empty.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 50) n")
    empty.wait_equal()
    [daemon] = empty._daemons
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        empty.execute("update $T set body = 'waits' where id <= 10")
        empty.execute("delete from $T where id > 40")
        assert (await reconciled(empty, lag_s=0.0)).tally.found == {"stale": 10, "orphaned": 10}
        handle = await started(empty, ReconcileOrder(subject=subject(empty, lag_s=120.0)))

        async def checking() -> bool:
            return (
                bool((await handle.describe()).raw_description.pending_activities)
                and (await handle.query(Reconcile.progress)).phase == "checking"
            )

        await eventually(checking)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert (await handle.result()).tally.found == {}


async def test_the_deletion_of_an_orphan_does_not_outlive_a_new_row_of_its_key(empty: MirroredTable) -> None:
    redis = redis_connect(empty.config.redis)
    writer = IndexWriter(redis, Layout(empty.name, 1), 16)
    await writer.write([Put("9", LogVersion(0, 1 << 40, 1 << 40, 5), "h", "m", (), (("old", b"\0" * 1536),))])
    await redis.aclose()
    mended = await reconciled(empty, repair=True)
    assert (mended.tally.found, mended.tally.left) == ({"orphaned": 1}, {})
    empty.execute("insert into $T values (9, 'new', 'row', 'c', 1)")
    empty.wait_equal()


async def test_another_worker_goes_on_from_where_a_killed_one_was(
    table: MirroredTable, workers: Workers
) -> None:
    table.redis.delete(key_of(table, "1050"))
    whole = subject(table, rows_per_range=10**6, repair=True)
    handle = await started(table, ReconcileOrder(subject=whole, rate=250.0, parallel=1))

    async def half() -> bool:
        shown = await progress_now(handle, await handle.describe())
        return shown is not None and shown.done >= 500

    await eventually(half)
    workers.process.kill()
    # Checked already: seen again only by a worker that begins anew.
    table.redis.delete(key_of(table, "21"))
    workers.start()
    told = await handle.result()
    assert told.tally.found == {"lost_chunks": 1}
    assert told.tally.examples["lost_chunks"] == ("1050",)
    assert told.tally.rows == told.tally.documents == len(table.expected())
    assert await differences(table) == {"21": frozenset({D.LOST_CHUNKS})}
    assert (await reconciled(table, repair=True)).tally.left == {}


async def test_a_paused_reconcile_goes_on_with_all_that_is_left(table: MirroredTable) -> None:
    table.redis.delete(key_of(table, "1050"))
    order = ReconcileOrder(subject=subject(table, rows_per_range=10**6, repair=True), rate=250.0)
    handle = await started(table, order)

    async def begun() -> bool:
        shown = await progress_now(handle, await handle.describe())
        return shown is not None and shown.done > 0

    async def at_rest() -> bool:
        return not (await handle.describe()).raw_description.pending_activities

    await eventually(begun)
    assert (await handle.execute_update(Reconcile.pause)).phase == "paused"
    await eventually(at_rest)
    assert not table.redis.exists(key_of(table, "1050"))
    await handle.execute_update(Reconcile.throttle, 0.0)
    await handle.execute_update(Reconcile.resume)
    told = await handle.result()
    assert told.tally.rows == told.tally.documents == len(table.expected())
    assert told.tally.found == {"lost_chunks": 1}
    assert table.redis.exists(key_of(table, "1050"))


async def test_the_backfill_of_a_paused_reconcile_is_paused_and_throttled_with_it(
    table: MirroredTable,
) -> None:
    table.redis.hset(f"lv:{table.name}:reconcile", "partitions_changed", "1.0")
    handle = await started(table, ReconcileOrder(subject=subject(table, repair=True), rate=50.0))
    client = await connect(table.config)

    async def child_phase() -> str:
        children = (await handle.describe()).raw_description.pending_children
        if not children:
            return ""
        child = client.get_workflow_handle(children[0].workflow_id)
        shown = await progress_now(child, await child.describe())
        return shown.phase if shown else ""

    async def is_in(phase: str) -> bool:
        return await child_phase() == phase

    await eventually(lambda: is_in("copying"))
    await handle.execute_update(Reconcile.pause)
    await eventually(lambda: is_in("paused"))
    await handle.execute_update(Reconcile.throttle, 0.0)
    await handle.execute_update(Reconcile.resume)
    told = await handle.result()
    assert (told.backfilled, told.ok) == (True, True)


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
    key = f"lv:source:{table.source.name}:identity"
    before = table.redis.get(key)
    assert before is not None
    try:
        table.redis.set(key, json.dumps({**json.loads(before), "system": "1"}))
        refused = table.command("reconcile", table.name, "--repair", "--wait")
        assert refused.returncode == 1
        assert "another database" in refused.stderr
    finally:
        table.redis.set(key, before)

"""A reindex gives readers another index version, whole, in one step, and the old one again, while rows change."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.service import RPCError

from daemon.index.connection import connect as redis_connect
from daemon.index.layout import Layout
from daemon.index.writer import IndexWriter
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, wait_until
from tests.support.tiny_model import HIDDEN
from tests.workflows.reindexes import Readers, Reindexes, beside, editing, insert_words, tiny_model
from workflows.client import reason
from workflows.reindex.contract import APPROVAL, BACKFILLING, GRACE, Approval, Rollback
from workflows.reindex.quality import QualityCheck
from workflows.resources import Resources

ROWS = 300
STILL = 200
"""Rows up to this one are edited by nobody."""
EDITED = 400


@pytest.fixture(scope="module")
def running(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirroredTable]:
    """A table with connector, daemon and worker; its tests leave the rows as they were, under other versions."""
    folder = tmp_path_factory.mktemp("reindex")
    table = MirroredTable(stack, folder, settings="[reindex]\nlast_readers_s = 0.5\nqueries = 40")
    try:
        table.connect()
        insert_words(table, 1, ROWS)
        with table.daemon(), table.worker():
            table.wait_equal()
            yield table
    finally:
        table.close()


@pytest.fixture
async def reindexes(running: MirroredTable) -> AsyncIterator[Reindexes]:
    """Rows as they are at first; what a test leaves running is ended."""
    ids = [row[0] for row in running.db.execute(f"select id from {running.name} order by id")]
    if ids != list(range(1, ROWS + 1)):
        running.execute("delete from $T where id > %s", STILL)
        insert_words(running, STILL + 1, ROWS)
        wait_until(lambda: running.committed() == running.end_offsets())
    made = await Reindexes.of(running)
    number = (await made.versions()).active
    wait_until(lambda: len(made.texts(number)) == ROWS)
    yield made
    with suppress(RPCError):
        await made.client.get_workflow_handle(f"reindex-{running.name}").terminate("the test is over")


async def test_another_dimension_is_searched_from_one_moment_on_and_back_again_and_no_query_fails(
    reindexes: Reindexes, tmp_path: Path
) -> None:
    table = reindexes.table
    old = (await reindexes.versions()).active
    readers = Readers(table, list(range(1, STILL + 1)))
    with tiny_model(table, tmp_path) as model, editing(table, STILL + 1, EDITED), beside(readers.by_registry):
        handle, reached = await reindexes.swapped(model=model)
        assert reached.new is not None
        assert (reached.new.dimension, reached.new.model) == (HIDDEN, model)
        new = reached.new.number
        gate = reached.gate
        assert gate is not None
        assert gate.passed
        assert gate.rows >= STILL
        assert (gate.differences, gate.behind) == ({}, 0)
        assert gate.quality.recall is not None
        assert gate.quality.recall > 0.95
        assert gate.quality.vectors >= STILL
        wait_until(lambda: readers.seen[-1] == new)
        assert (await reindexes.check(new)).ok
        assert (await reindexes.check(old)).ok
        assert reindexes.alias() == f"{table.name}:{new}"

        back = await handle.execute_update("rollback", Rollback())
        assert back["rolled_back"]
        wait_until(lambda: readers.seen[-1] == old)
        done = await handle.result()
        assert done.outcome == "rolled_back"
    assert readers.failed == []
    assert readers.swaps() == [old, new, old]
    assert (await reindexes.check(old)).ok
    assert reindexes.keys(new) == set()
    assert reindexes.indexes() == {f"{table.name}:{old}"} == {reindexes.alias()}
    assert (await reindexes.versions()).versions.keys() == {old}


async def test_other_settings_of_the_graph_and_a_shorter_number_embed_no_text_again(
    reindexes: Reindexes,
) -> None:
    table = reindexes.table
    old = (await reindexes.versions()).active
    readers = Readers(table, list(range(1, ROWS + 1)))
    with beside(readers.by_alias):
        handle, reached = await reindexes.swapped(m=32, ef_construction=64)
        assert reached.new is not None
        wait_until(lambda: readers.seen[-1] == reached.new.number)
    assert readers.failed == []
    assert readers.swaps() == [old, reached.new.number]
    await handle.execute_update("finish")
    done = await handle.result()
    assert (done.outcome, done.outcomes) == ("activated", {"reused": ROWS})
    assert reindexes.keys(old) == set()
    assert reindexes.indexes() == {f"{table.name}:{reached.new.number}"}

    handle, reached = await reindexes.swapped(type="FLOAT16", grace_s=0.0)
    assert reached.new is not None
    assert (await handle.result()).outcomes == {"reused": ROWS}
    assert (await reindexes.check(reached.new.number)).ok
    # What the shorter number lost is not to be had from it.
    handle, reached = await reindexes.swapped(type="FLOAT32", m=16, ef_construction=128, grace_s=0.0)
    assert (await handle.result()).outcomes == {"embedded": ROWS}


async def test_another_template_embeds_only_the_rows_whose_text_differs(reindexes: Reindexes) -> None:
    table = reindexes.table
    same = table.db.execute(f"select count(*) from {table.name} where category is null").fetchone()
    assert same is not None
    handle, reached = await reindexes.swapped(text="{title}: {body}{category}", grace_s=0.0)
    assert reached.new is not None
    done = await handle.result()
    assert done.outcomes == {"reused": same[0], "embedded": ROWS - same[0]}
    category = "w1"
    assert reindexes.texts(reached.new.number)["1"].endswith(category)
    assert (await reindexes.check(reached.new.number)).ok


async def test_a_deleted_row_never_comes_back(reindexes: Reindexes) -> None:
    table = reindexes.table
    insert_words(table, ROWS + 1, ROWS + 100)
    handle = await reindexes.start(rate=200.0, **await reindexes.another())
    await reindexes.reached(handle, BACKFILLING)
    table.execute("delete from $T where id = 3 or id > %s", ROWS)
    reached = await reindexes.reached(handle, GRACE)
    assert reached.new is not None
    number = reached.new.number
    wait_until(lambda: len(reindexes.texts(number)) == ROWS - 1)
    assert (await reindexes.check(number)).ok
    insert_words(table, 3, 3)
    wait_until(lambda: len(reindexes.texts(number)) == ROWS)
    await handle.execute_update("finish")
    await handle.result()


async def test_a_gate_that_fails_is_never_passed_by_itself_and_a_rejected_version_leaves_nothing(
    reindexes: Reindexes,
) -> None:
    table = reindexes.table
    old = (await reindexes.versions()).active
    last = int(table.redis.hget(f"lv:{table.name}:versions", "last") or old)
    foreign = f"lv:{table.name}:{last + 1}:doc:written by hand"
    table.redis.hset(foreign, mapping={"id": "1"})
    handle = await reindexes.start(auto=True, **await reindexes.another())
    reached = await reindexes.reached(handle, APPROVAL)
    assert reached.gate is not None
    assert reached.gate.failures == ("1 documents orphaned",)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update("approve", Approval())
    assert "the gate fails: 1 documents orphaned" in reason(refused.value)
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update("rollback", Rollback())
    await handle.execute_update("reject")
    assert (await handle.result()).outcome == "rejected"
    assert reindexes.keys(last + 1) == set()
    assert not table.redis.exists(f"lv:{table.name}:writers:{last + 1}")
    assert reindexes.indexes() == {f"{table.name}:{old}"} == {reindexes.alias()}
    assert (await reindexes.versions()).versions.keys() == {old}


async def test_a_reindex_that_is_cancelled_while_it_fills_leaves_nothing(reindexes: Reindexes) -> None:
    old = (await reindexes.versions()).active
    handle = await reindexes.start(rate=20.0, **await reindexes.another())
    reached = await reindexes.reached(handle, BACKFILLING)
    assert reached.new is not None
    wait_until(lambda: reindexes.texts(reached.new.number))
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as ended:
        await handle.result()
    assert "cancelled" in str(ended.value.cause).lower()
    assert reindexes.keys(reached.new.number) == set()
    assert (await reindexes.versions()).versions.keys() == {old}
    child = reindexes.client.get_workflow_handle(f"{handle.id}-backfill")
    assert (await child.describe()).status.name == "CANCELED"


async def test_where_the_log_lacked_something_meanwhile_it_is_filled_anew_and_not_rolled_back(
    reindexes: Reindexes,
) -> None:
    table = reindexes.table
    handle = await reindexes.start(auto=False, **await reindexes.another())
    await reindexes.reached(handle, APPROVAL)
    client = redis_connect(table.config.redis)
    try:
        writer = IndexWriter(client, Layout(table.name, 1), 16)
        await writer.mark_for_reconcile("redis_went_back")
        await reindexes.reached(handle, BACKFILLING)
        reached = await reindexes.reached(handle, APPROVAL)
        assert "redis_went_back" in reached.note
        assert reached.gate is not None
        assert reached.gate.passed
        approved = await handle.execute_update("approve", Approval())
        assert approved["phase"] == GRACE
        # It is of the index that readers see, and stays for a reconcile of that one.
        assert await writer.reconcile_reasons()
        await writer.mark_for_reconcile("redis_went_back")
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("rollback", Rollback())
        assert "redis_went_back" in reason(refused.value)
        await writer.reconciled(await writer.reconcile_reasons())
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("rollback", Rollback())
        await handle.execute_update("rollback", Rollback(force=True))
        assert (await handle.result()).outcome == "rolled_back"
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "no_such_model"}, "no_such_model"),
        ({"text": "{no_such_column}"}, "no_such_column"),
        ({"text": "no column"}, "names no column"),
        ({"m": 1}, "greater than or equal to 2"),
        ({"type": "FLOAT64"}, "FLOAT16"),
        ({"dimension": 7}, "384"),
        ({"metric": "cosine"}, "nothing would differ"),
    ],
)
async def test_what_cannot_be_made_is_refused_before_anything_is(
    reindexes: Reindexes, changes: dict[str, Any], told: str
) -> None:
    before = await reindexes.versions()
    handle = await reindexes.start(**changes)
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert told in reason(failed.value)
    assert await reindexes.versions() == before


async def test_a_version_that_the_daemon_gives_up_fails_the_reindex_with_its_reason(
    reindexes: Reindexes,
) -> None:
    table = reindexes.table
    before = await reindexes.versions()
    table.execute("alter table $T add column extra text")
    handle = await reindexes.start(text="{title} {extra}", rate=20.0)
    reached = await reindexes.reached(handle, BACKFILLING)
    assert reached.new is not None
    table.execute("alter table $T drop column extra")
    insert_words(table, ROWS + 1, ROWS + 1)
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert "extra" in reason(failed.value)
    assert (await reindexes.versions()).versions == before.versions
    assert reindexes.keys(reached.new.number) == set()


async def test_recall_tells_what_the_graph_does_not_find(reindexes: Reindexes) -> None:
    table = reindexes.table
    number = (await reindexes.versions()).active
    metrics = Metrics()
    resources = Resources(table.config, metrics, Health(metrics))
    try:
        async with resources.projection(table.name, number) as projection:
            whole = await QualityCheck(resources, projection, projection.version).run()
            for key in sorted(key for key in reindexes.keys(number) if b":doc:" in key)[::3]:
                # Redis does not index a hash whose number is none; its vector stays where it is.
                table.redis.hset(key, "price", "no number")
            lacking = await QualityCheck(resources, projection, projection.version).run()
    finally:
        await resources.close()
    assert whole.recall is not None
    assert whole.recall > 0.95
    assert lacking.recall is not None
    assert 0.3 < lacking.recall < 0.9
    assert (whole.vectors, lacking.vectors) == (ROWS, ROWS)
    assert (whole.queries, whole.overlap) == (40, 1.0)

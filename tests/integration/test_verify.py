"""`livevec verify` sees every kind of damage, is not fooled by changes on their way, and --repair mends it all."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import StopPipeline
from daemon.verify.differences import Difference as D
from daemon.verify.differences import IndexFindings
from daemon.verify.session import opened
from deploy.local.stack import Stack
from tests.support.index_damage import TO_DOCUMENTS, Found, no_index, wrong_vector
from tests.support.mirrored_table import MirroredTable, wait_until

ROWS = 520
"""More than one chunk of the check reads at once."""
TEXT_BYTES_MAX = 300


@pytest.fixture(scope="module")
def table(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirroredTable]:
    """A table at rest: mirrored by a daemon that has ended. One row is refused, one was deleted."""
    made = MirroredTable(
        stack, tmp_path_factory.mktemp("verify"), pipeline=f"text_bytes_max = {TEXT_BYTES_MAX}"
    )
    try:
        made.connect()
        made.execute(
            "insert into $T select n, 'title ' || n, 'about the number ' || n, 'c' || mod(n, 7), n / 4.0"
            f" from generate_series(1, {ROWS}) n"
        )
        made.execute(
            "insert into $T values (5000, 'long', repeat('x', 400), 'c', 1), (5001, 'a', 'b', 'c', 1)"
        )
        with made.daemon() as daemon:
            made.execute("delete from $T where id = 5001")
            wait_until(lambda: daemon.outcomes().get("deleted") == 1 and len(made.documents()) == ROWS)
            assert daemon.terminate() == 0
        yield made
    finally:
        made.close()


async def check(table: MirroredTable, *, repair: bool = False, vectors: bool = True) -> IndexFindings:
    """What is found; after `repair`: what is left."""
    async with opened(table.config, table.config.pipelines[0], vectors=vectors) as session:
        report = await session.check(lambda *_: None)
        if repair:
            await session.repair(lambda *_: None, lambda _: None)
            return await session.check(lambda *_: None)
        return report


async def test_an_index_at_rest_differs_in_nothing(table: MirroredTable) -> None:
    report = await check(table)
    assert report.ok, report.differing
    assert (report.rows, report.documents, report.refused) == (ROWS + 1, ROWS, 1)


@pytest.mark.parametrize("damage", [*TO_DOCUMENTS, no_index], ids=lambda damage: damage.__name__)
async def test_each_damage_is_told_for_what_it_is_and_mended(
    table: MirroredTable, damage: Callable[[MirroredTable], Found]
) -> None:
    expected = damage(table)
    async with opened(table.config, table.config.pipelines[0], vectors=True) as session:
        report = await session.check(lambda *_: None)
        assert dict(report.differing) == expected
        await session.repair(lambda *_: None, lambda _: None)
        left = await session.check(lambda *_: None)
    assert left.ok, left.differing
    assert left.documents == left.rows - 1
    assert table.indexed().items() <= table.expected().items()


async def test_a_key_that_livevec_did_not_write_is_an_orphan_and_removed(table: MirroredTable) -> None:
    foreign = f"lv:{table.name}:1:doc:written by hand"
    table.redis.hset(foreign, "id", "1")
    report = await check(table)
    assert report.ids(D.ORPHANED) == [foreign]
    assert (await check(table, repair=True)).ok
    assert not table.redis.exists(foreign)


async def test_without_vectors_nothing_is_embedded_and_a_wrong_one_not_seen(table: MirroredTable) -> None:
    wrong_vector(table)
    assert (await check(table, vectors=False)).ok
    assert not (await check(table)).ok
    assert (await check(table, repair=True)).ok


async def test_a_repair_clears_the_reasons_that_were_noted_before_it(table: MirroredTable) -> None:
    table.redis.hset(f"lv:{table.name}:reconcile", "redis_went_back", "1.0")
    async with opened(table.config, table.config.pipelines[0], vectors=False) as session:
        done = await session.repair(lambda *_: None, lambda _: None)
        assert done.reasons == ("redis_went_back",)
        assert await session.reconcile_reasons() == {}


def verify(table: MirroredTable, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = table.command("verify", *arguments, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_command_names_the_documents_and_exits_with_1_until_repaired(table: MirroredTable) -> None:
    wrong_vector(table)
    _orphaned_again = table.expected().popitem()[0]
    table.execute("delete from $T where id = %s", int(_orphaned_again))
    status, found = verify(table, table.name)
    assert (status, found["ok"], found["wrong_vector"], found["orphaned"], found["missing"]) == (
        1,
        False,
        1,
        1,
        0,
    )
    assert found["pipelines"][0]["examples"] == {"orphaned": [_orphaned_again], "wrong_vector": ["8"]}
    status, found = verify(table, "--repair")
    assert (status, found["ok"], found["wrong_vector"], found["orphaned"]) == (0, True, 0, 0)
    assert found["pipelines"][0]["repair"]["found"]["wrong_vector"] == 1
    assert verify(table)[0] == 0


async def test_a_repair_that_would_remove_most_of_an_index_removes_nothing_before_a_person_says_yes(
    mirrored: MirroredTable,
) -> None:
    mirrored.connect()
    mirrored.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 150) n")
    with mirrored.daemon() as daemon:
        mirrored.wait_equal()
        assert daemon.terminate() == 0
    mirrored.execute("delete from $T where id > 70")
    for reasons in ({}, {"redis_went_back": "1.0"}):
        for reason, since in reasons.items():
            mirrored.redis.hset(f"lv:{mirrored.name}:reconcile", reason, since)
        with pytest.raises(StopPipeline, match=r"80 or more of the 150 documents.*--repair --yes"):
            await check(mirrored, repair=True)
        assert len(mirrored.documents()) == 150
    assert mirrored.redis.hexists(f"lv:{mirrored.name}:reconcile", "redis_went_back")
    refused = mirrored.command("verify", "--repair")
    assert (refused.returncode, "--repair --yes" in refused.stderr) == (1, True), refused.stderr
    status, mended = verify(mirrored, "--repair", "--yes")
    assert (status, mended["ok"], mended["documents"]) == (0, True, 70)
    assert mended["pipelines"][0]["repair"]["swept"] >= 80
    assert len(mirrored.documents()) == 70


async def test_changes_on_their_way_are_no_differences_and_a_repair_beside_them_loses_none(
    mirrored: MirroredTable,
) -> None:
    mirrored.connect()
    mirrored.execute("insert into $T select n, 't ' || n, 'b ' || n, 'c', n from generate_series(1, 600) n")
    stop = threading.Event()

    def edit() -> None:
        number = 0
        while not stop.wait(0.01):
            number += 1
            key = number * 7 % 600 + 1
            if number % 5 == 0:
                mirrored.execute("delete from $T where id = %s", key)
            else:
                mirrored.execute(
                    "insert into $T values (%s, 't', %s, 'c', 1) on conflict (id) do update set body = excluded.body",
                    key,
                    f"edit {number}",
                )

    with mirrored.daemon():
        mirrored.wait_equal()
        editor = threading.Thread(target=edit)
        editor.start()
        try:
            for _ in range(3):
                report = await check(mirrored)
                assert report.ok, report.differing
            await check(mirrored, repair=True)
            mirrored.redis.hset(f"lv:{mirrored.name}:reconcile", "redis_went_back", "1.0")
            await check(mirrored, repair=True)
        finally:
            stop.set()
            editor.join()
        mirrored.wait_equal()
        assert (await check(mirrored)).ok


async def test_ids_of_any_characters_are_checked_and_found(stack: Stack, tmp_path: Path) -> None:
    ddl = "a text, b text, title text, body text, category text, price numeric(10,2), primary key (a, b)"
    table = MirroredTable(stack, tmp_path, ddl=ddl)
    keys = [
        ("a b", "c/d"),
        ("{x}", "}:0"),
        ('"q"', "'%s'"),
        ("*?[", "\\|"),
        ("ключ", "🔑,x"),
        ("", "-@:$id"),
        ("%2F", "/"),
        (" ", "x "),
        ("k" * 1000, ""),
    ]
    try:
        table.connect()
        for a, b in keys:
            table.execute("insert into $T values (%s, %s, 'title', %s, 'c', 1)", a, b, f"{a} and {b}")
        with table.daemon():
            wait_until(lambda: len(table.documents()) == len(keys))
        assert (await check(table)).ok
        table.redis.execute_command("FT.DROPINDEX", f"{table.name}:1")
        report = await check(table)
        assert len(report.ids(D.NOT_INDEXED)) == len(keys)
        assert (await check(table, repair=True)).ok
    finally:
        table.close()

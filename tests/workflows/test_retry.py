"""Dead letters of a table are tried again: by the worker, and by a person with `livevec retry`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from daemon.core.version import SnapshotVersion, decode
from daemon.index.layout import Layout
from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, WorkerProcess, wait_until
from tests.support.ports import free_port
from tests.support.tcp_proxy import tcp_proxy
from tests.workflows.retries import Retries
from workflows.retry.contract import TryOutcome

LONG = "long " * 100
HASTY = "[retry_dead_letters]\npause_s_min = 0.5\npause_s_max = 2.0\n"
BY_TIME = f"{HASTY}wait_for_change = []"
"""A text that is too long is tried by time then, as what the embedder refuses is."""


@pytest.fixture(scope="module")
def mirror(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirroredTable]:
    """Takes texts of up to 300 bytes; its retries are hasty."""
    folder = tmp_path_factory.mktemp("retry")
    table = MirroredTable(stack, folder, settings=HASTY, pipeline="text_bytes_max = 300")
    try:
        table.connect()
        yield table
    finally:
        table.close()


@pytest.fixture
def table(mirror: MirroredTable) -> Iterator[MirroredTable]:
    """Without rows, and nothing held. Neither daemon nor worker runs."""
    yield mirror
    mirror.end_workflows()
    with mirror.daemon():
        mirror.execute("delete from $T")
        mirror.wait_equal()


@contextmanager
def configured(table: MirroredTable, before: str, after: str) -> Iterator[None]:
    """What is started inside has `after` in its configuration where `before` stands."""
    text = table.config_path.read_text()
    assert before in text
    table.config_path.write_text(text.replace(before, after))
    try:
        yield
    finally:
        table.config_path.write_text(text)


def poison(table: MirroredTable, *keys: int) -> None:
    """Rows that are refused; the daemon has dead-lettered them when this returns."""
    before = len(table.dead_letters())
    for key in keys:
        table.execute(
            "insert into $T values (%s, 'row', %s, 'x', 1) on conflict (id) do update set body = excluded.body",
            key,
            LONG,
        )
    wait_until(lambda: len(table.dead_letters()) == before + len(keys), 30)


def retry(table: MirroredTable, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = table.command("retry", table.name, "--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def tries(worker: WorkerProcess) -> dict[str, float]:
    """Tries that this worker made, by outcome."""
    prefix = 'livevec_dead_letters_tried_total{outcome="'
    metrics = worker.metrics().items()
    return {name[len(prefix) :].split('"')[0]: count for name, count in metrics if name.startswith(prefix)}


async def test_a_row_that_was_mended_in_its_table_is_tried_again_and_becomes_searchable(
    table: MirroredTable,
) -> None:
    with table.daemon():
        poison(table, 1, 2)
        assert table.indexed() == {}
    # The daemon is away: only the retry can bring it.
    table.execute("update $T set body = 'mended' where id = 1")
    with configured(table, HASTY, BY_TIME), table.worker() as worker:
        wait_until(lambda: table.indexed().keys() == {"1"}, 30)
        assert table.indexed()["1"][0] == "row: mended"
        stored = table.redis.hget(Layout(table.name, 1).bookkeeping("1"), "v")
        assert isinstance(decode(stored.decode()), SnapshotVersion)
        await (await Retries.of(table)).until_held("2")
        assert tries(worker)["applied"] == 1
        # What is refused again by the retry is no new dead letter.
        wait_until(lambda: tries(worker).get("refused", 0) >= 2)
        assert len(table.dead_letters()) == 2


async def test_a_deleted_row_never_comes_back(table: MirroredTable) -> None:
    with table.daemon():
        table.execute("insert into $T values (10, 'row', 'good', 'x', 1)")
        table.wait_equal()
        poison(table, 10)
        assert table.indexed()["10"][0] == "row: good"
    table.execute("delete from $T where id = 10")
    with configured(table, HASTY, BY_TIME), table.worker() as worker:
        wait_until(lambda: table.indexed() == {}, 30)
        await (await Retries.of(table)).until_held()
        assert tries(worker)["applied"] == 1
        with table.daemon() as daemon:
            wait_until(lambda: daemon.outcomes().get("superseded", 0) + daemon.outcomes().get("deleted", 0))
            assert table.indexed() == {}


async def test_a_row_that_cannot_be_read_does_not_hold_up_the_others(table: MirroredTable) -> None:
    retries = await Retries.of(table)
    with table.daemon(), table.worker():
        table.execute("insert into $T values (70, 'row', 'good', 'x', 1)")
        table.wait_equal()
        await retries.feed("no number", "70", "71")
        held = await retries.until_held("no number")
        assert held["no number"].letter.reason == "unreadable"
        assert (await retries.status()).totals == {TryOutcome.APPLIED: 2, TryOutcome.REFUSED: 1}


async def test_what_a_newer_change_made_right_is_skipped(table: MirroredTable) -> None:
    with table.daemon(), table.worker() as worker:
        poison(table, 20, 21)
        found = await (await Retries.of(table)).until_held("20", "21")
        assert [(one.given_up, one.attempts) for one in found.values()] == [(None, 0)] * 2
        table.execute("update $T set body = 'short' where id = 20")
        table.execute("delete from $T where id = 21")
        wait_until(lambda: table.indexed().keys() == {"20"})
        await (await Retries.of(table)).until_held()
        made = tries(worker)
        assert made.pop("superseded") == 2
        assert made.keys() <= {"waiting"}
        assert retry(table, "--list")["dead_letters"] == []


async def test_a_person_can_hasten_show_and_drop_them(table: MirroredTable) -> None:
    with table.daemon(), table.worker() as worker:
        poison(table, 30, 31, 32)
        await (await Retries.of(table)).until_held("30", "31", "32")
        again = retry(table, "--key", "30", "--wait", status=1)
        assert (again["asked"], again["outcomes"]) == (1, {"refused": 1})
        listed = {one["key"]: one for one in retry(table, "--list")["dead_letters"]}
        assert {key: (one["state"], one["attempts"]) for key, one in listed.items()} == {
            "30": ("waits", 1),
            "31": ("waits", 0),
            "32": ("waits", 0),
        }
        shown = retry(table, "--show", "30")
        assert (shown["reason"], shown["operation"], shown["kept_bytes"]) == (
            "oversized_text",
            "upsert",
            None,
        )
        assert "text_bytes_max is 300" in shown["message"]
        assert shown["record"].startswith(f"{table.topic}/0/")
        assert "is held" in retry(table, "--error", "not_numeric", status=1)["error"]
        assert retry(table, "--drop", "30")["dropped"] == 1
        await (await Retries.of(table)).until_held("31", "32")
        shown_as = (
            f'livevec_dead_letters_held{{pipeline="{table.name}",reason="oversized_text",state="waiting"}}'
        )
        wait_until(lambda: worker.metrics().get(shown_as) == 2)
        assert retry(table, "--drop-all", "--error", "oversized_text")["dropped"] == 2
        assert retry(table, "--list")["dead_letters"] == []


async def test_an_embedder_that_is_away_is_no_attempt_of_the_row(table: MirroredTable) -> None:
    with table.daemon():
        poison(table, 40)
    table.execute("update $T set body = 'mended' where id = 40")
    away = f"127.0.0.1:{free_port()}"
    with configured(table, HASTY, BY_TIME):
        with configured(table, table.addresses.triton_grpc, away), table.worker() as worker:
            failures = 'livevec_failures_total{failure="RetryLater",part="embedder text_embedder"}'
            wait_until(lambda: worker.metrics().get(failures, 0) > 5)
            assert (await (await Retries.of(table)).held())["40"].attempts == 0
            assert worker.terminate() == 0
        with table.worker() as worker:
            wait_until(lambda: tries(worker) == {"applied": 1}, 60)
            assert table.indexed().keys() == {"40"}


async def test_dead_letters_wait_in_kafka_while_temporal_is_away(table: MirroredTable) -> None:
    temporal = f'address = "{table.addresses.temporal_address}"'
    with tcp_proxy(table.addresses.temporal_address) as proxy, table.daemon() as daemon:
        with configured(table, temporal, f'address = "127.0.0.1:{proxy.port}"'), table.worker() as worker:
            proxy.silent = True
            proxy.reset()
            poison(table, 50)
            assert daemon.get("/status.json")["stopped_pipelines"] == {}
            worker.kill()
        # That worker was killed before it could tell.
        with configured(table, temporal, f'address = "127.0.0.1:{free_port()}"'):
            found = retry(table, "--list")
        [letter] = [one for one in found["dead_letters"] if one["key"] == "50"]
        assert (letter["state"], letter["attempts"]) == ("not taken yet", None)
        assert "Temporal cannot be reached" in found["note"]
        with table.worker():
            await (await Retries.of(table)).until_held("50")


async def test_dead_letters_that_are_fed_twice_count_once(table: MirroredTable) -> None:
    retries = await Retries.of(table)
    with table.daemon(), table.worker() as worker:
        poison(table, 60)
        await retries.until_held("60")
        taken = (await retries.status()).taken
        assert worker.terminate() == 0
    fed = _fed(table)
    assert fed == len(table.dead_letters())
    _feed_from(table, fed - 1)
    with table.worker():
        wait_until(lambda: _fed(table) == fed)
        assert (await retries.status()).taken == taken
        await retries.until_held("60")


def _fed(table: MirroredTable) -> int:
    """The offset up to which the feeder has fed."""
    return _group(table, lambda consumer, partition: consumer.committed([partition], timeout=10)[0].offset)


def _feed_from(table: MirroredTable, offset: int) -> None:
    def commit(consumer: Consumer, partition: TopicPartition) -> None:
        partition.offset = offset
        consumer.commit(offsets=[partition], asynchronous=False)

    _group(table, commit)


def _group(table: MirroredTable, work: Any) -> Any:
    servers = table.addresses.kafka_bootstrap_servers
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"{table.name}.retry"})
    try:
        return work(consumer, TopicPartition(table.dead_letter_topic, 0))
    finally:
        consumer.close()

"""The fakes of the shell keep the protocols of what they stand for; tests/integration/test_shell_protocols.py asks the
real ones the same."""

import asyncio
import time

import orjson
import pytest
import redis.exceptions as errors

from daemon.core.change import Operation
from daemon.core.version import LogVersion, SnapshotVersion
from daemon.errors import RetryLater
from daemon.index.connection import translated
from daemon.source.envelope import EnvelopeDecoder, message_time_s
from daemon.source.kafka.reader import Partition
from tests.support.ordering.postgres import XID_MODULUS
from tests.support.shell import clock
from tests.support.shell.clock import VirtualLoop
from tests.support.shell.faults import Delay, Faults, Hold, LoseAnswer, Meanwhile, Reject, at
from tests.support.shell.kafka import Broker, FakeKafkaReader
from tests.support.shell.process import Process
from tests.support.shell.protocols import RecordingListener, reader_tells, redis_answers
from tests.support.shell.redis import RedisServer
from tests.support.shell.servers import Servers
from tests.support.shell.shell import configuration

GROUP = "group"


def test_every_redis_command_has_an_answer() -> None:
    async def main(_: VirtualLoop) -> list[tuple[str, object]]:
        return await redis_answers(RedisServer(Faults()).client())

    answers = dict(clock.run(main))
    assert answers["get"] == b"two"
    assert answers["unknown function"] == "function not found"
    assert answers["pipeline"] == [[b"S:0:7:7:", b"h2", b"m"], [None, None, None], True]


def test_what_expires_is_gone_by_the_virtual_clock() -> None:
    async def main(_: VirtualLoop) -> None:
        client = RedisServer(Faults()).client()
        await client.set("key", b"1", px=2_000)
        await asyncio.sleep(1.9)
        assert await client.exists("key")
        await asyncio.sleep(0.2)
        assert not await client.exists("key")
        assert [key async for key in client.scan_iter()] == []

    clock.run(main)


def test_redis_goes_back_to_what_it_was() -> None:
    async def main(_: VirtualLoop) -> None:
        server = RedisServer(Faults())
        client = server.client()
        await client.hset("hash", "a", "1")
        go_back = server.checkpoint()
        await client.hset("hash", "a", "2")
        await client.set("later", "x")
        go_back()
        assert await client.hgetall("hash") == {b"a": b"1"}
        assert not await client.exists("later")
        server.flush()
        assert await client.hgetall("hash") == {}

    clock.run(main)


def test_a_call_may_be_refused_lost_delayed_held_or_overtaken() -> None:
    async def main(_: VirtualLoop) -> None:
        faults = Faults()
        server = RedisServer(faults)
        client = server.client()
        faults.script = at(0, Reject())
        with pytest.raises(errors.ConnectionError):
            await client.set("key", "refused")
        assert await client.get("key") is None
        faults.script = at(faults.count, LoseAnswer())
        with pytest.raises(errors.TimeoutError):
            await client.set("key", "lost")
        assert await client.get("key") == b"lost"
        faults.script = at(faults.count, Delay(10))
        begun_s = time.monotonic()
        await client.set("key", "late")
        assert time.monotonic() - begun_s == 10
        hold = Hold()
        faults.script = at(faults.count, hold)
        held = asyncio.ensure_future(client.set("key", "held"))
        await asyncio.sleep(5)
        assert await client.get("key") == b"late"
        hold.released.set()
        await held
        assert await client.get("key") == b"held"
        faults.script = at(faults.count, Meanwhile(server.flush))
        assert await client.get("key") is None

    clock.run(main)


def test_a_pipeline_may_be_applied_in_part() -> None:
    async def main(_: VirtualLoop) -> None:
        faults = Faults()
        client = RedisServer(faults).client()
        faults.script = at(0, LoseAnswer(applied=1))
        pipe = client.pipeline(transaction=False)
        pipe.set("first", "1")
        pipe.set("second", "2")
        with pytest.raises(RetryLater), translated():
            await pipe.execute()
        assert await client.exists("first")
        assert not await client.exists("second")

    clock.run(main)


def test_a_process_that_was_killed_has_no_effect_any_more() -> None:
    async def main(loop: VirtualLoop) -> None:
        faults, process = Faults(), Process()
        server = RedisServer(faults)
        client = server.client(process)

        async def works() -> None:
            while True:
                await client.hincrby("hash", "n", 1)
                await asyncio.sleep(1)

        task = process.run(loop, works())
        await asyncio.sleep(2.5)
        faults.script = at(faults.count, Meanwhile(lambda: process.die(loop)))
        await asyncio.sleep(5)
        await process.gone()
        assert task.cancelled()
        assert await server.client().hget("hash", "n") == b"3"

    clock.run(main)


def broker_with(topic: str, partitions: int = 1) -> Broker:
    broker = Broker(Faults())
    broker.create(topic, partitions)
    return broker


def test_a_reader_reads_commits_seeks_pauses_and_tells_gaps() -> None:
    async def main(_: VirtualLoop) -> list[tuple[str, object]]:
        broker = broker_with("topic")

        async def append(count: int) -> None:
            for _ in range(count):
                broker.append(("topic", 0), b"key", b"value")

        async def forget_before(offset: int) -> None:
            broker.forget_before(("topic", 0), offset)

        return await reader_tells(
            "topic",
            lambda listener: FakeKafkaReader(broker, GROUP, ["topic"], listener, Process()),
            append,
            forget_before,
        )

    assert clock.run(main) == READER_TELLS


TOPIC: Partition = ("topic", 0)
READER_TELLS: list[tuple[str, object]] = [
    ("partitions", 1),
    ("assigned", {TOPIC: None}),
    ("revoking", [TOPIC]),
    ("records", [0, 1, 2, 3, 4, 3, 4]),
    ("seeks", [0, 1]),
    ("read while paused", 0),
    ("assigned", {TOPIC: 3}),
    ("revoking", [TOPIC]),
    ("records", [3, 4, 5, 6]),
    ("seeks", [0]),
    ("assigned", {TOPIC: 3}),
    ("gap", TOPIC),
    ("revoking", [TOPIC]),
    ("records", [5, 6]),
    ("seeks", [0]),
]


def test_a_partition_is_given_to_another_member_only_when_the_first_has_let_it_go() -> None:
    async def main(_: VirtualLoop) -> None:
        broker = broker_with("topic", 2)
        listeners = [RecordingListener(), RecordingListener()]
        readers = [FakeKafkaReader(broker, GROUP, ["topic"], listener, Process()) for listener in listeners]
        for partition in range(2):
            broker.append(("topic", partition), b"key", b"value")
        readers[0].start()
        await listeners[0].until(lambda: len(listeners[0].records) == 2)
        listeners[0].acknowledged = {("topic", 0): 1, ("topic", 1): 1}
        readers[1].start()
        await listeners[1].until(lambda: listeners[1].events)
        assert listeners[0].events[1:] == [("revoking", [("topic", 1)])]
        assert listeners[1].events == [("assigned", {("topic", 1): 1})]
        await readers[0].stop()
        await listeners[1].until(lambda: len(listeners[1].events) == 2)
        assert listeners[1].events[1] == ("assigned", {("topic", 0): 1})
        assert [(c.partition, c.offset, c.revoking) for c in broker.commits] == [
            (("topic", 1), 1, True),
            (("topic", 0), 1, True),
        ]
        await readers[1].stop()

    clock.run(main)


def test_what_was_lost_is_not_committed_any_more() -> None:
    async def main(_: VirtualLoop) -> None:
        broker, listener = broker_with("topic"), RecordingListener()
        reader = FakeKafkaReader(broker, GROUP, ["topic"], listener, Process())
        broker.append(TOPIC, b"key", b"value")
        reader.start()
        await listener.until(lambda: listener.records)
        broker.group(GROUP).take_away(reader, [TOPIC])
        reader.commit({TOPIC: 1})
        await listener.until(lambda: ("lost", [TOPIC]) in listener.events)
        assert broker.commits == []
        await reader.stop()

    clock.run(main)


def test_the_decoder_reads_what_the_database_writes() -> None:
    """Every kind of record, with ids modulo 2^32."""

    async def main(_: VirtualLoop) -> None:
        servers = Servers(configuration())
        database = servers.database
        database.write({1: "one"})
        database.update_other_column(1)
        database.write({1: None})
        database.truncate()
        database.write({2: "two"})
        database.emit_snapshot(2)
        database.model.server.last_commit_lsn = None
        database.write({2: "zwei"})
        database.beat()
        wide = database.model.server.next_xid - 1
        decoder = EnvelopeDecoder(
            "public.docs", ["id"], ["text", "n"], lambda xid, era, lsn: xid + wide - wide % XID_MODULUS
        )
        topic = database.topic
        reader_listener = RecordingListener()
        reader = FakeKafkaReader(
            servers.broker, GROUP, [topic, database.message_topic], reader_listener, Process()
        )
        reader.start()
        total = sum(log.end for log in servers.broker.logs.values())
        await reader_listener.until(lambda: len(reader_listener.records) == total)
        await reader.stop()
        records = [record for record in reader_listener.records if record.topic == topic]
        changes = [change for record in records if (change := decoder.decode(record)) is not None]
        of_one = [change for change in changes if change.key == ("1",)]
        assert [change.operation for change in of_one] == [
            Operation.UPSERT,
            Operation.REREAD,
            Operation.DELETE,
        ]
        assert of_one[0].row == {"id": 1, "text": "one", "n": 1}
        assert isinstance(of_one[0].version, LogVersion)
        assert of_one[1].wait_xid is not None
        assert of_one[1].wait_xid < wide
        of_two = [change for change in changes if change.key == ("2",)]
        assert [(c.operation, c.wait_xid is None) for c in of_two] == [
            (Operation.UPSERT, False),
            (Operation.REREAD, True),
            (Operation.REREAD, False),
        ]
        assert [c.operation for c in changes if not c.key] == [Operation.TRUNCATE]
        assert sum(record.value is None for record in records) == 1, "one tombstone, after the delete"
        [message] = [r for r in reader_listener.records if r.topic == database.message_topic]
        assert message_time_s(message) == pytest.approx(time.time())
        assert orjson.loads(message.value or b"")["op"] == "m"

    clock.run(main)


def test_a_row_is_read_with_the_snapshot_that_sees_it() -> None:
    async def main(_: VirtualLoop) -> None:
        servers = Servers(configuration())
        database = servers.database
        reader = database.reader(configuration().sources[0])  # type: ignore[arg-type]
        database.write({1: "one", 2: "two"})
        xid = database.write({1: "uno"}, visible=False)
        table = await reader.schema("public.docs")
        found = await reader.reread(table, [("1",), ("3",)], ["text"])
        assert [dict(row) for row in found.rows] == [{"id": 1, "text": "one"}]
        assert not found.version.sees(xid)
        begun = await reader.barrier_begun()
        waiting = await reader.barrier_passed(begun)
        assert not isinstance(waiting, SnapshotVersion)
        assert [one.xid for one in waiting] == [xid]
        database.appear(xid)
        passed = await reader.barrier_passed(begun)
        assert isinstance(passed, SnapshotVersion)
        assert passed.sees(xid)
        chunk = await reader.chunk(table, ("1",), 5, ["text"])
        assert [row["text"] for row in chunk.rows] == ["two"]
        servers.faults.script = at(servers.faults.count, Reject())
        with pytest.raises(RetryLater):
            await reader.snapshot()

    clock.run(main)

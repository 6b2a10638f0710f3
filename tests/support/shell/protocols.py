"""The same calls for a fake and for what it stands for: what each is asked, and what it answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import redis.exceptions as errors
from redis.commands.search.field import NumericField, TagField, VectorField
from redis.commands.search.index_definition import IndexDefinition, IndexType

from daemon.core.version import LogVersion, SnapshotVersion
from daemon.index.connection import Client
from daemon.index.layout import Layout
from daemon.index.writer import Delete, Put, Touch, load_functions
from daemon.source.kafka.reader import Partition
from daemon.source.record import Record
from tests.support.ordering.calls import advance

LAYOUT = Layout("protocol", 1)
OLD, NEW = LogVersion(0, 10, 11, 5), LogVersion(0, 20, 21, 6)
SNAPSHOT = SnapshotVersion(0, 7, 7)
VECTOR = b"\0" * 16


async def redis_answers(client: Client) -> list[tuple[str, object]]:
    """What an empty Redis answers to every command that the product sends, each in the ways that it is sent."""
    answers: list[tuple[str, object]] = []
    plain = cast(Any, client)

    async def ask(name: str, call: Awaitable[Any]) -> None:
        try:
            answer = await call
        except errors.ResponseError as error:
            text = str(error).lower()
            answer = next(
                (word for word in ("wrongtype", "malformed", "function not found") if word in text), text
            )
        answers.append((name, answer))

    await ask("unknown function", plain.fcall("livevec_advance", 1, "p", "f", "", "1:2"))
    await load_functions(client)
    await ask("get nothing", plain.get("text"))
    await ask("set", plain.set("text", b"1"))
    await ask("set text", plain.set("text", "two"))
    await ask("set not again", plain.set("text", b"2", nx=True))
    await ask("set number", plain.set("number", 3, nx=True))
    await ask("get", plain.get("text"))
    await ask("get number", plain.get("number"))
    await ask("set for a while", plain.set("short", b"1", px=60_000))
    await ask("set for seconds", plain.set("short", b"1", ex=60))
    await ask("exists", plain.exists("short"))
    await ask("exists not", plain.exists("nothing"))
    await ask("delete", plain.delete("short", "nothing"))
    await ask("hgetall nothing", plain.hgetall("hash"))
    await ask("hset", plain.hset("hash", "a", "1"))
    await ask("hset again", plain.hset("hash", "a", b"2"))
    await ask("hset mapping", plain.hset("hash", mapping={"b": "3", "c": "4"}))
    await ask("hsetnx", plain.hsetnx("hash", "a", "5"))
    await ask("hsetnx new", plain.hsetnx("hash", "d", "5"))
    await ask("hincrby", plain.hincrby("hash", "d", 2))
    await ask("hget", plain.hget("hash", "a"))
    await ask("hmget", plain.hmget("hash", ["a", "nothing"]))
    await ask("hkeys", _sorted(plain.hkeys("hash")))
    await ask("hdel", plain.hdel("hash", "a", "nothing"))
    await ask("hgetall", plain.hgetall("hash"))
    await ask("hdel rest", plain.hdel("hash", "b", "c", "d"))
    await ask("exists without fields", plain.exists("hash"))
    await ask("sadd", plain.sadd("set", "1", "2"))
    await ask("sadd again", plain.sadd("set", "2"))
    await ask("smembers", plain.smembers("set"))
    await ask("smembers nothing", plain.smembers("nothing"))
    await ask("wrong type", plain.hgetall("set"))
    await ask("wrong type too", plain.get("set"))
    await ask("info", _has_run_id(plain.info("server")))

    # ---- functions
    put = Put("1", OLD, "h", "m", (("n", "1"),), (("text", VECTOR), ("more", VECTOR)))
    for name, call in (
        ("put", put),
        ("put again", put),
        ("touch", Touch("1", NEW, "h", "m2", (("n", "2"),), ("gone",))),
        ("touch another text", Touch("1", SNAPSHOT, "other", "m", (), ())),
        ("put fewer chunks", Put("1", SNAPSHOT, "h2", "m", (("n", "3"),), (("short", VECTOR),))),
        ("delete nothing", Delete("2", OLD, 60_000)),
        ("superseded", Delete("1", OLD, 60_000)),
    ):
        await ask(name, plain.execute_command(*call.command(LAYOUT)))
    for identifier in ("1", "2"):
        await ask(f"bookkeeping {identifier}", plain.hgetall(LAYOUT.bookkeeping(identifier)))
    stem = LAYOUT.keys("1")[2]
    await ask("first chunk", plain.hgetall(f"{stem}:0"))
    await ask("second chunk", plain.hgetall(f"{stem}:1"))
    keys = LAYOUT.keys("1")
    await ask("vectors", plain.execute_command("FCALL", "livevec_vectors", 3, *keys, "h2"))
    await ask("no vectors", plain.execute_command("FCALL", "livevec_vectors", 3, *keys, "h"))
    await ask("floor", plain.execute_command("FCALL", "livevec_raise_floor", 1, keys[1], NEW.encode()))
    await ask("sweep", plain.execute_command("FCALL", "livevec_sweep", 3, *keys, NEW.encode()))
    await ask("malformed", plain.execute_command("FCALL", "livevec_sweep", 3, *keys, "L:1"))
    await ask("advance", plain.execute_command(*advance("positions", ("t/0", "", "1:5"))))
    await ask("advance not", plain.execute_command(*advance("positions", ("t/0", "1:4", "1:6"))))
    await ask("advance on", plain.execute_command(*advance("positions", ("t/0", "1:5", "1:6"))))

    await ask("marks", plain.hset("marks", mapping={"a": "1.5", "b": "2"}))
    await ask("clear marks", plain.fcall("livevec_clear_marks", 1, "marks", "a", "1.5", "b", "1", "c", "1"))
    await ask("left marks", plain.hgetall("marks"))
    [server, run_id] = await plain.execute_command(*advance("positions", ("@server", "", "")))
    answers.append(("server", server))
    here, there = ("@server", run_id.decode(), ""), ("@server", "another", "")
    await ask(
        "advance on the same server",
        plain.execute_command(*advance("positions", here, ("t/0", "1:6", "1:7"))),
    )
    moved = await plain.execute_command(*advance("positions", there, ("t/0", "1:7", "1:8")))
    answers.append(("advance on another server", [part for part in moved if part != run_id]))
    await ask("positions", plain.hgetall("positions"))

    # ---- pipelines
    pipe = client.pipeline(transaction=False)
    pipe.execute_command("HMGET", LAYOUT.bookkeeping("1"), "v", "h", "m")
    pipe.execute_command("HMGET", LAYOUT.bookkeeping("nobody"), "v", "h", "m")
    pipe.execute_command("HGETALL", "set")
    with_error = await pipe.execute(raise_on_error=False)
    answers.append(("pipeline", [isinstance(a, errors.ResponseError) or a for a in with_error]))
    await ask("empty pipeline", client.pipeline(transaction=False).execute())

    # ---- keys
    for number in range(25):
        await plain.set(f"scan:[{number}]", "x")
    found = [key async for key in client.scan_iter(match="scan:\\[*\\]", count=10)]
    answers.append(("scan", sorted(found)))
    return answers


async def search_answers(client: Client) -> list[tuple[str, object]]:
    """What an empty Redis with search answers to the commands of `daemon.index.schema`."""
    answers: list[tuple[str, object]] = []

    async def ask(name: str, call: Awaitable[Any]) -> None:
        try:
            answer = await call
        except errors.ResponseError as error:
            text = str(error).lower()
            answer = "no such index" if "no such index" in text or "unknown index" in text else text
        if isinstance(answer, dict):
            plain = {_text(key): value for key, value in answer.items()}
            answer = _text(plain["index_name"]), int(plain["hash_indexing_failures"])
        answers.append((name, _text(answer)))

    vector = VectorField("embedding", "HNSW", {"TYPE": "FLOAT32", "DIM": 4, "DISTANCE_METRIC": "COSINE"})
    definition = cast(Any, IndexDefinition)(prefix=["lv:p:1:doc:"], index_type=IndexType.HASH)
    first, second = cast(Any, client.ft("p:1")), cast(Any, client.ft("p:2"))
    await ask("info of nothing", first.info())
    await ask("alias of nothing", first.aliasupdate("p"))
    await ask(
        "create", first.create_index([TagField("id"), NumericField("n"), vector], definition=definition)
    )
    await ask("create second", second.create_index([TagField("id"), vector], definition=definition))
    await ask("info", first.info())
    await ask("alias", first.aliasupdate("p"))
    await ask("info by alias", cast(Any, client.ft("p")).info())
    await ask("move alias", second.aliasupdate("p"))
    await ask("info by moved alias", cast(Any, client.ft("p")).info())
    await ask("drop", second.dropindex())
    await ask("info of what was dropped", second.info())
    await ask("info by alias of what was dropped", cast(Any, client.ft("p")).info())
    await client.flushdb()
    await ask("info after all keys went", first.info())
    return answers


async def _sorted(call: Awaitable[Any]) -> list[Any]:
    return sorted(await call)


async def _has_run_id(call: Awaitable[Any]) -> bool:
    return bool(dict(await call)["run_id"])


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


class RecordingListener:
    """What a Kafka reader tells, in its order.

    Attributes:
        events: (what, of which partitions or offsets).
        records: all that came.
        starts: where to begin each partition; None: where the group has committed.
        acknowledged: answered when partitions go.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []
        self.records: list[Record] = []
        self.seeks: list[int] = []
        self.starts: dict[Partition, int | None] | None = None
        self.acknowledged: dict[Partition, int] = {}
        self.changed = asyncio.Event()

    def received(self, records: Sequence[Record], seeks: int) -> None:
        self.records += records
        self.seeks += [seeks] * len(records)
        self.changed.set()

    async def assigned(self, committed: Mapping[Partition, int | None]) -> Mapping[Partition, int | None]:
        self.events.append(("assigned", dict(committed)))
        self.changed.set()
        return committed if self.starts is None else {p: self.starts[p] for p in committed}

    async def revoking(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        self.events.append(("revoking", sorted(partitions)))
        return {p: offset for p, offset in self.acknowledged.items() if p in partitions}

    def lost(self, partitions: Sequence[Partition]) -> None:
        self.events.append(("lost", sorted(partitions)))
        self.changed.set()

    def gap(self, partition: Partition, reason: str) -> None:
        self.events.append(("gap", partition))
        self.changed.set()

    def failed(self, error: BaseException) -> None:
        raise error

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def reader_tells(
    topic: str,
    new_reader: Callable[[RecordingListener], Any],
    append: Callable[[int], Awaitable[None]],
    forget_before: Callable[[int], Awaitable[None]],
) -> list[tuple[str, object]]:
    """What a Kafka reader tells of one life after another, over a topic of one partition of which nothing is read.

    Args:
        new_reader: makes one of the same group.
        append: so many records.
        forget_before: lets retention take the records before that offset.
    """
    partition, told = (topic, 0), list[tuple[str, object]]()

    async def life(listener: RecordingListener, work: Callable[[Any], Awaitable[None]]) -> None:
        reader = new_reader(listener)
        reader.start()
        await work(reader)
        await asyncio.to_thread(reader.stop)
        told.extend(listener.events)
        told.append(("records", [record.offset for record in listener.records]))
        told.append(("seeks", sorted(set(listener.seeks))))

    def offsets(listener: RecordingListener) -> list[int]:
        return [record.offset for record in listener.records]

    first = RecordingListener()

    async def reads_and_commits(reader: Any) -> None:
        await append(5)
        await first.until(lambda: 4 in offsets(first))
        told.append(("partitions", await reader.partitions(topic)))
        reader.commit({partition: 2})
        reader.seek({partition: 3})
        await first.until(lambda: offsets(first).count(4) == 2)
        first.acknowledged = {partition: 3}

    await life(first, reads_and_commits)
    second = RecordingListener()

    async def goes_on(reader: Any) -> None:
        await second.until(lambda: 4 in offsets(second))
        reader.pause({topic})
        await reader.partitions(topic)  # answered after the pause was made
        await append(2)
        count = len(second.records)
        await asyncio.sleep(0.5)
        told.append(("read while paused", len(second.records) - count))
        reader.pause(())
        await second.until(lambda: 6 in offsets(second))

    await life(second, goes_on)
    third = RecordingListener()
    await forget_before(5)

    async def finds_a_gap(_: Any) -> None:
        await third.until(lambda: 6 in offsets(third))

    await life(third, finds_a_gap)
    return told

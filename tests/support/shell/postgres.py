"""A primary in memory: a reader over the model of `tests.support.ordering.postgres`, and Debezium's records of its log.

The table has three columns: `id`, `text` and `n`. The model knows one text a row; here it reads `<n> <text>`.
"""

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

import orjson

from daemon.core.change import Row
from daemon.core.version import Anchor, SnapshotVersion
from daemon.errors import RetryLater
from daemon.settings import ERA_HEADER, PostgresSource
from daemon.source.postgres.reader import BlockingTransaction, SnapshotRows, SourceIdentity
from daemon.source.postgres.schema import ColumnInfo, TableSchema
from daemon.source.postgres.values import ColumnType
from tests.support.ordering.postgres import Event, Postgres
from tests.support.shell.faults import Faults
from tests.support.shell.kafka import Broker
from tests.support.shell.process import Process

T = TypeVar("T")
UNAVAILABLE = "__debezium_unavailable_value"
EARLY_INSERT = 0.16


def _column(name: str, type: str, oid: int) -> ColumnInfo:
    return ColumnInfo(name, oid, type, ColumnType(type), oid, f"pg_catalog.{type}", "")


TABLE = TableSchema(
    schema="public",
    table="docs",
    quoted="public.docs",
    kind="r",
    persistence="p",
    oid=16_400,
    filenode=16_400,
    columns=(_column("id", "int8", 20), _column("text", "text", 25), _column("n", "int8", 20)),
    key=("id",),
    partitions=(),
    publication=(16_500, 16_400),
)


class Database:
    """The source, its connector and their topics; outlives every process.

    Args:
        faults: of all calls to it.
        broker: where the connector writes.
        source: as the configuration has it.
        random: makes every choice of the model.
        partitions: of the table's topic.

    Attributes:
        model: transactions, rows and log.
        schema: the table, as it is now.
        timeline: raised by a failover.
        last_n: the number that the newest row was given; each new row or text gets another one.
    """

    def __init__(
        self, faults: Faults, broker: Broker, source: PostgresSource, random: Random, partitions: int = 2
    ) -> None:
        self.faults = faults
        self.schema = TABLE
        self.source_name = source.name
        self.system_identifier = 7_300_000_000_000_000_001
        self.timeline = 1
        self.oid = 16_384
        self.last_n = 0
        self.topic = f"{source.name}.{TABLE.name}"
        self.message_topic = source.message_topic
        self._random = random
        self._broker = broker
        self._partitions = partitions
        self.model = Postgres(random, self.emit, EARLY_INSERT, lambda: self.value(random.choice("ABC")))
        self.model.start_streaming()
        broker.create(self.topic, partitions)
        broker.create(self.message_topic)

    # ---- what applications do, in one transaction each

    def write(self, rows: dict[int, str | None], visible: bool = True) -> int:
        """Set the text of each key, None: delete it. Answers the transaction, which is committed; see `appear`."""
        xid = self.model.begin()
        for key, text in rows.items():
            old = self.row(key)
            value = None if text is None else self.value(text)
            operation = "d" if value is None else "c" if old is None else "u"
            self.model.put(xid, key, value, self.model.tick(), operation)
        self.model.write_commit_record(xid, time.time())
        if visible:
            self.model.become_visible(xid)
        return xid

    def appear(self, xid: int) -> None:
        """Let new snapshots see a committed transaction."""
        self.model.become_visible(xid)

    def update_other_column(self, key: int) -> None:
        """An update that leaves the text where it is, out of line: the record does not carry it."""
        old = self._value(key)
        assert old is not None
        xid = self.model.begin()
        text = old.partition(" ")[2]
        self.model.put(xid, key, self.value(text), self.model.tick(), "u", toast=True)
        self.model.write_commit_record(xid, time.time())
        self.model.become_visible(xid)

    def truncate(self) -> None:
        xid = self.model.begin()
        self.model.truncate(xid)
        self.model.write_commit_record(xid, time.time())
        self.model.become_visible(xid)

    def value(self, text: str) -> str:
        self.last_n += 1
        return f"{self.last_n} {text}"

    def _value(self, key: int) -> str | None:
        return self.model.read(key, self.model.snapshot())

    def row(self, key: int) -> Row | None:
        """As a new snapshot sees it."""
        return _row(key, self._value(key))

    def table(self) -> dict[str, tuple[str, int]]:
        """Text and number by document id, as a new snapshot sees them."""
        rows = [self.row(key) for key in self.model.server.chain]
        return {str(row["id"]): (row["text"], row["n"]) for row in rows if row is not None}

    # ---- the connector

    def beat(self) -> None:
        """The logical message that the connector writes each second."""
        now_us = int(time.time() * 1e6)
        source = {"ts_us": now_us, "ts_ms": now_us // 1000, "lsn": self.model.server.lsn, "snapshot": "false"}
        envelope = {"op": "m", "source": source, "message": {"prefix": "livevec", "content": ""}}
        self._broker.append((self.message_topic, 0), b'{"prefix":"livevec"}', orjson.dumps(envelope))

    def emit(self, event: Event) -> None:
        """Write a change as Debezium does."""
        partition = (self.topic, event.partition % self._partitions)
        headers = [(ERA_HEADER, str(event.era).encode())] if event.era else []
        key = None if event.key is None else orjson.dumps({"id": event.key})
        self._broker.append(partition, key, orjson.dumps(envelope(event)), headers)
        if event.op == "d":
            self._broker.append(partition, key, None, headers)

    def emit_snapshot(self, key: int) -> None:
        """An `r` event: its position is that of the read, its txId that of the last change."""
        server, value = self.model.server, self._value(key)
        if value is None:
            return
        last = self.model.log[-1] if self.model.log else None
        xid32 = last.xid32 if last else 0
        born_s = time.time()
        event = Event(
            "r",
            key,
            value,
            xid32,
            server.last_commit_lsn,
            server.lsn,
            False,
            born_s,
            key % self._partitions,
            server.era,
        )
        self.emit(event)

    def reader(self, source: PostgresSource, process: Process | None = None) -> "FakePostgresReader":
        return FakePostgresReader(self, source, process or Process())


def envelope(event: Event) -> dict[str, Any]:
    """The value of a change's record."""
    time_us = int(event.born_s * 1e6)
    previous = None if event.commit_lsn is None else str(event.commit_lsn)
    source = {
        "version": "3.7.0.Final",
        "connector": "postgresql",
        "lsn": event.lsn,
        "txId": event.xid32,
        "ts_ms": time_us // 1000,
        "ts_us": time_us,
        "ts_ns": time_us * 1000,
        "snapshot": "true" if event.op == "r" else "false",
        "schema": TABLE.schema,
        "table": TABLE.table,
        "sequence": orjson.dumps([previous, str(event.lsn)]).decode(),
    }
    after = None
    if event.op in ("c", "u", "r") and event.key is not None:
        after = dict(_row(event.key, event.text) or {})
        if event.toast:
            after["text"] = UNAVAILABLE
    before = {"id": event.key, "text": None, "n": None} if event.op == "d" else None
    return {"before": before, "after": after, "source": source, "op": event.op, "ts_ms": time_us // 1000}


def _row(key: int, value: str | None) -> Row | None:
    if value is None:
        return None
    number, _, text = value.partition(" ")
    return {"id": key, "text": text, "n": int(number)}


class FakePostgresReader:
    """See `daemon.source.postgres.reader.PostgresReader`."""

    def __init__(self, database: Database, source: PostgresSource, process: Process) -> None:
        self.part = f"source {source.name}"
        self._database = database
        self._source = source
        self._process = process

    async def close(self) -> None:
        """There is no connection."""

    async def schema(self, table: str) -> TableSchema:
        return await self._call("schema", table, lambda: self._database.schema)

    async def reread(
        self, table: TableSchema, keys: Sequence[tuple[str, ...]], columns: Sequence[str]
    ) -> SnapshotRows:
        numbers = [int(key[0]) for key in keys]
        return await self._call("reread", ",".join(map(str, numbers)), lambda: self._rows(numbers, columns))

    async def chunk(
        self,
        table: TableSchema,
        after: tuple[str, ...] | None,
        limit: int,
        columns: Sequence[str],
        where: str | None = None,
        until: tuple[str, ...] | None = None,
        inclusive: bool = False,
    ) -> SnapshotRows:
        assert where is None, "a condition is SQL"

        def apply() -> SnapshotRows:
            keys = sorted(self._database.model.server.chain)
            if after is not None:
                keys = [key for key in keys if key > int(after[0]) or (inclusive and key == int(after[0]))]
            if until is not None:
                keys = [key for key in keys if key <= int(until[0])]
            found = self._rows(keys, columns)
            return SnapshotRows(found.version, found.rows[:limit], found.read_at_s)

        return await self._call("chunk", str(after), apply)

    async def snapshot(self) -> SnapshotVersion:
        return await self._call("snapshot", "", self._version)

    async def barrier_begun(self) -> int:
        def apply() -> int:
            xid = self._database.model.begin()
            self._database.model.become_visible(xid)
            return xid

        return await self._call("barrier_begun", "", apply)

    async def barrier_passed(self, begun: int) -> SnapshotVersion | list[BlockingTransaction]:
        def apply() -> SnapshotVersion | list[BlockingTransaction]:
            version = self._version()
            if version.xmin > begun:
                return version
            running = sorted(xid for xid in self._database.model.server.transactions if xid <= begun)
            return [BlockingTransaction(xid, 1, "app", "app", "active", None) for xid in running]

        return await self._call("barrier_passed", "", apply)

    async def anchor(self) -> Anchor:
        def apply() -> Anchor:
            return Anchor(self._source.era, self._database.model.server.lsn, self._version().xmax)

        return await self._call("anchor", "", apply)

    async def identity(self) -> SourceIdentity:
        database = self._database
        return await self._call(
            "identity",
            "",
            lambda: SourceIdentity(database.system_identifier, database.timeline, False, database.oid),
        )

    async def count_estimate(self, table: TableSchema) -> int:
        return await self._call("count_estimate", "", lambda: len(self._database.table()))

    def _version(self) -> SnapshotVersion:
        snapshot = self._database.model.snapshot()
        xip = tuple(sorted(snapshot.xip))
        return SnapshotVersion(self._source.era, min(xip, default=snapshot.xmax), snapshot.xmax, xip)

    def _rows(self, keys: Sequence[int], columns: Sequence[str]) -> SnapshotRows:
        model = self._database.model
        snapshot, names = model.snapshot(), dict.fromkeys((*TABLE.key, *columns))
        rows = [_row(key, model.read(key, snapshot)) for key in dict.fromkeys(keys)]
        found = tuple({name: row[name] for name in names} for row in rows if row is not None)
        return SnapshotRows(self._version(), found, time.time())

    async def _call(self, name: str, subject: str, apply: Callable[[], T]) -> T:
        self._process.check()

        def checked(_: int | None) -> T:
            self._process.check()
            return apply()

        def away(_: bool) -> Exception:
            return RetryLater("PostgreSQL cannot be reached; is it up at the source's dsn?", 0.1)

        answer = await self._database.faults.call("postgres", name, subject, checked, away)
        self._process.check()
        return answer

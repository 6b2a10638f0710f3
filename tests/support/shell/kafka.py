"""A broker in memory, and a reader with the manners of `daemon.source.kafka.reader.KafkaReader`.

The real reader is a thread; this one is a task. Like the thread it does one thing at a time: while the listener
answers about partitions that come or go, nothing is read and no call is made; calls are made in their order between
two reads; and what was read is taken by the listener a moment later, at most two batches ahead.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from daemon.errors import RetryLater
from daemon.source.kafka.reader import Listener, Partition
from daemon.source.record import Record
from tests.support.shell.faults import Faults
from tests.support.shell.process import Process

BATCH_RECORDS = 500
BATCHES_AHEAD_MAX = 2


@dataclass(frozen=True)
class Committed:
    """One commit of offsets, in the order in which the broker took them."""

    group: str
    partition: Partition
    offset: int
    at_s: float
    revoking: bool


@dataclass(frozen=True)
class Appended:
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    at_s: float


@dataclass
class Log:
    """One partition. `first`: the offset of its oldest record."""

    first: int = 0
    records: list[Appended] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.first + len(self.records)


class Broker:
    """Topics, and what groups have committed; outlives every process.

    Attributes:
        commits: all so far.
        on_commit: called before each commit is taken, with the group, the partition and the offset.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.logs: dict[Partition, Log] = {}
        self.groups: dict[str, Group] = {}
        self.commits: list[Committed] = []
        self.on_commit: Callable[[str, Partition, int], None] = lambda *_: None

    def create(self, topic: str, partitions: int = 1) -> None:
        """Make a topic; one of that name that there is goes away, its records with it."""
        for partition in [partition for partition in self.logs if partition[0] == topic]:
            del self.logs[partition]
        for number in range(partitions):
            self.logs[topic, number] = Log()
        self.wake()

    def append(
        self,
        partition: Partition,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes | None]] = (),
    ) -> int:
        """Append a record; answers its offset."""
        log = self.logs[partition]
        log.records.append(Appended(key, value, tuple(headers), time.time()))
        self.wake()
        return log.end - 1

    def forget_before(self, partition: Partition, offset: int) -> None:
        """Retention: the records before that offset are gone."""
        log = self.logs[partition]
        count = max(0, min(offset, log.end) - log.first)
        del log.records[:count]
        log.first += count
        self.wake()

    def partitions_of(self, topic: str) -> list[Partition]:
        return sorted(partition for partition in self.logs if partition[0] == topic)

    def group(self, name: str) -> "Group":
        return self.groups.setdefault(name, Group(self, name))

    def wake(self) -> None:
        for group in self.groups.values():
            group.wake()


class Group:
    """A consumer group: who has which partition, and what was committed.

    Attributes:
        members: readers that joined.
        wanted: who shall have each partition.
        committed: the next offset to read, by partition.
        absent: partitions that some other member, which is not here, has.
    """

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self.name = name
        self.members: list[FakeKafkaReader] = []
        self.wanted: dict[Partition, FakeKafkaReader] = {}
        self.committed: dict[Partition, int] = {}
        self.absent: set[Partition] = set()

    def join(self, reader: "FakeKafkaReader") -> None:
        self.members.append(reader)
        self.rebalance()

    def leave(self, reader: "FakeKafkaReader") -> None:
        if reader in self.members:
            self.members.remove(reader)
            self.rebalance()

    def rebalance(self, absent: Collection[Partition] | None = None) -> None:
        """Share the partitions out anew; `absent` go to a member that is not here."""
        if absent is not None:
            self.absent = set(absent)
        self.wanted = {}
        free = sorted(set(self._broker.logs) - self.absent)
        for number, partition in enumerate(free):
            takers = [member for member in self.members if partition[0] in member.topics]
            if takers:
                self.wanted[partition] = takers[number % len(takers)]
        self.wake()

    def take_away(self, reader: "FakeKafkaReader", partitions: Collection[Partition]) -> None:
        """Its session has ended: the partitions are another's, and it learns that afterwards."""
        self.absent |= set(partitions)
        reader.lose(partitions)
        self.rebalance()

    def owner(self, partition: Partition) -> "FakeKafkaReader | None":
        return next((member for member in self.members if partition in member.owned), None)

    def commit(self, offsets: Mapping[Partition, int], revoking: bool) -> None:
        for partition, offset in offsets.items():
            self._broker.on_commit(self.name, partition, offset)
            self._broker.commits.append(Committed(self.name, partition, offset, time.time(), revoking))
            self.committed[partition] = offset

    def wake(self) -> None:
        for member in self.members:
            member.wake()


class FakeKafkaReader:
    """Takes the place of `KafkaReader` for one process.

    Args:
        broker: see `Broker`.
        group: its name.
        topics: to subscribe.
        listener: see `daemon.source.kafka.reader.Listener`.
        process: whose it is.
        batch_records: asked for the most records of each batch.

    Attributes:
        paused: topics that are not read now.
        seeks: calls of `seek` that were made.
    """

    def __init__(
        self,
        broker: Broker,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        process: Process,
        batch_records: Callable[[], int] = lambda: BATCH_RECORDS,
    ) -> None:
        self.topics = frozenset(topics)
        self.owned: set[Partition] = set()
        self.paused: frozenset[str] = frozenset()
        self.seeks = 0
        self._broker = broker
        self._group = broker.group(group)
        self._listener = listener
        self._process = process
        self._batch_records = batch_records
        self._lost: set[Partition] = set()
        self._next: dict[Partition, int] = {}
        self._calls: list[Callable[[], None]] = []
        self._room = asyncio.Semaphore(BATCHES_AHEAD_MAX)
        self._something = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    # ---- what the daemon asks

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    def stop(self) -> Awaitable[None]:
        """Leave the group. The real one blocks its thread until it has; this one answers what to wait for."""
        self._stopping = True
        self.wake()
        assert self._task is not None
        return self._task

    def pause(self, topics: Collection[str]) -> None:
        self._call(lambda: self._pause(frozenset(topics)))

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        offsets = dict(offsets)
        self._call(lambda: self._commit(offsets))

    def seek(self, offsets: Mapping[Partition, int | None]) -> None:
        offsets = dict(offsets)

        def call() -> None:
            self._seek(offsets)
            self.seeks += 1

        self._call(call)

    async def partitions(self, topic: str) -> int:
        def away(_: bool) -> Exception:
            return RetryLater(f"Kafka does not tell the partitions of {topic}", 1.0)

        count = await self._broker.faults.call(
            "kafka", "partitions", topic, lambda _: len(self._broker.partitions_of(topic)), away
        )
        self._process.check()
        return count

    # ---- what a test does to it

    def lose(self, partitions: Collection[Partition]) -> None:
        """They are another's from now on; the listener is told as soon as this reader gets to it."""
        lost = self.owned & set(partitions)
        self.owned -= lost
        self._lost |= lost
        self.wake()

    def wake(self) -> None:
        self._something.set()

    # ---- what the real one's thread does

    async def _run(self) -> None:
        self._group.join(self)
        try:
            while not self._stopping:
                await self._hand_over()
                await self._room.acquire()
                # A pause that what was handed over led to is asked for before its room is free: obey it first.
                self._make_calls()
                if not self._read():
                    self._room.release()
                    await self._something.wait()
                    self._something.clear()
                await asyncio.sleep(0)
            await self._revoke(sorted(self.owned))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._stopping:
                raise
            self._listener.failed(error)
        finally:
            self._group.leave(self)

    async def _hand_over(self) -> None:
        """Tell what was lost, give back what shall be another's, then take what is free."""
        if self._lost:
            lost, self._lost = sorted(self._lost), set()
            self._listener.lost(lost)
        wanted = {partition for partition, member in self._group.wanted.items() if member is self}
        surplus = sorted(partition for partition in self.owned if partition not in wanted)
        if surplus:
            await self._revoke(surplus)
        if self._lost:
            return  # lost meanwhile, which is told before anything is assigned
        new = sorted(partition for partition in wanted - self.owned if self._group.owner(partition) is None)
        if new:
            await self._assign(new)

    async def _assign(self, partitions: Sequence[Partition]) -> None:
        committed = {partition: self._group.committed.get(partition) for partition in partitions}
        self.owned |= set(partitions)  # of nobody else, from the moment at which the group gave them away
        try:
            start = await self._listener.assigned(committed)
        except RetryLater:
            start = dict.fromkeys(partitions)
        self._process.check()
        for partition in partitions:
            self._position(partition, start[partition])

    async def _revoke(self, partitions: Sequence[Partition]) -> None:
        if not partitions:
            return
        try:
            offsets = await self._listener.revoking(partitions)
        except RetryLater:
            offsets = {}
        self._process.check()
        if offsets:
            self._group.commit({p: offset for p, offset in offsets.items() if p in self.owned}, True)
        self.owned -= set(partitions)
        self._group.wake()

    def _read(self) -> bool:
        """Hand over what there is; whether there was anything."""
        records: list[Record] = []
        limit, loop = max(1, self._batch_records()), asyncio.get_running_loop()
        for partition in sorted(self.owned):
            log = self._broker.logs.get(partition)
            if log is None or partition[0] in self.paused or partition not in self._next:
                continue
            if self._is_out_of_range(partition, log):
                loop.call_soon(self._tell_gap, partition)
                self._position(partition, None)
                continue
            at = self._next[partition] - log.first
            part = log.records[at : at + limit - len(records)]
            records += [self._record(partition, self._next[partition] + n, r) for n, r in enumerate(part)]
            self._next[partition] += len(part)
        if not records:
            return False
        loop.call_soon(self._received, records, self.seeks)
        return True

    def _is_out_of_range(self, partition: Partition, log: Log) -> bool:
        at = self._next[partition]
        return at < log.first or at > log.end

    def _tell_gap(self, partition: Partition) -> None:
        if not self._process.dead:
            self._listener.gap(partition, "Broker: Offset out of range")

    def _received(self, records: Sequence[Record], seeks: int) -> None:
        try:
            if not self._process.dead:
                self._listener.received(records, seeks)
        finally:
            self._room.release()
            self.wake()

    def _record(self, partition: Partition, offset: int, appended: Appended) -> Record:
        topic, number = partition
        return Record(
            topic,
            number,
            offset,
            appended.key,
            appended.value,
            appended.headers,
            appended.at_s,
            time.time(),
        )

    def _call(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self.wake()

    def _make_calls(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def _pause(self, topics: frozenset[str]) -> None:
        self.paused = topics

    def _commit(self, offsets: Mapping[Partition, int]) -> None:
        self._process.check()
        self._group.commit({p: offset for p, offset in offsets.items() if p in self.owned}, False)

    def _seek(self, offsets: Mapping[Partition, int | None]) -> None:
        for partition, offset in offsets.items():
            if partition in self.owned:
                self._position(partition, offset)

    def _position(self, partition: Partition, offset: int | None) -> None:
        """None: the beginning."""
        log = self._broker.logs.get(partition)
        first = 0 if log is None else log.first
        self._next[partition] = first if offset is None else offset

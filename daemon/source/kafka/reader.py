"""The consumer thread: reads, pauses, commits, and hands over partitions.

librdkafka blocks, so it has a thread of its own; what it reads and what happens to its partitions is told to a
`Listener`, whose methods run in the event loop. Rebalancing is cooperative: on revocation the listener drains
what is in flight and says which offsets are acknowledged; those, and never anything later, are committed.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from daemon.errors import FailureClass, RetryLater, StopProcess
from daemon.settings import KafkaSettings
from daemon.source.kafka.failures import failure, translated
from daemon.source.record import Record

Partition = tuple[str, int]
T = TypeVar("T")

_POLL_S = 0.02
_BATCH_RECORDS = 500
_BATCHES_AHEAD_MAX = 2
"""Read and not yet taken by the loop; without a bound a busy loop would find all that waits in the topic at once."""
log = structlog.get_logger(__name__)


class Listener(Protocol):
    """Takes what the consumer reads and what happens to its partitions; every method runs in the event loop."""

    def received(self, records: Sequence[Record], seeks: int) -> None:
        """Take records in order; `seeks` counts the calls of `seek` that were made before they were read."""

    async def assigned(self, committed: Mapping[Partition, int | None]) -> Mapping[Partition, int | None]:
        """Return the offset to start each partition from (None: its beginning), given what the group has committed."""

    async def revoking(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        """Finish or abandon the work of these partitions; return the offsets to commit."""

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Forget partitions that are another's already, and commit nothing."""

    def gap(self, partition: Partition, reason: str) -> None:
        """Note that records that were never read are gone (retention, a recreated topic)."""

    def failed(self, error: BaseException) -> None:
        """Take the error for which the thread cannot go on."""


class KafkaReader:
    """Reads topics for one consumer group, and tells a listener in its event loop."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._topics = list(topics)
        self._listener = listener
        self._loop = loop
        with translated("the Kafka consumer cannot be made"):
            self._consumer = Consumer(consumer_settings(settings), logger=LibrdkafkaLog())
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._paused: frozenset[str] = frozenset()
        self._assignment: set[Partition] = set()
        self._missing: set[str] = set()
        self._seeks = 0
        self._room = threading.BoundedSemaphore(_BATCHES_AHEAD_MAX)
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Leave the group (revocation commits what is acknowledged) and end the thread."""
        self._stopping.set()
        self._thread.join()

    def pause(self, topics: Collection[str]) -> None:
        """Read only other topics than these from now on; none resumes all. The group membership stays."""
        self._calls.put(lambda: self._pause(frozenset(topics)))

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit the next offsets to read; a failure shows in the log and the next commit repeats it."""
        self._calls.put(
            lambda: self._commit(
                {p: offset for p, offset in offsets.items() if p in self._assignment}, asynchronous=True
            )
        )

    def seek(self, offsets: Mapping[Partition, int | None]) -> None:
        """Read these partitions again from these offsets (None: the beginning)."""

        def call() -> None:
            self._seek(offsets)
            self._seeks += 1

        self._calls.put(call)

    async def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has; 0 while it does not exist.

        Raises:
            RetryLater: Kafka does not answer.
        """
        answered: asyncio.Future[int] = self._loop.create_future()

        def call() -> None:
            # Asked from another thread, it waits until the consumer's own is between two polls, which may be never.
            try:
                with translated(f"Kafka does not tell the partitions of {topic}"):
                    count = len(self._consumer.list_topics(topic, 5).topics[topic].partitions)
            except FailureClass as error:
                self._loop.call_soon_threadsafe(answered.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(answered.set_result, count)

        self._calls.put(call)
        return await answered

    # ---- in the thread

    def _run(self) -> None:
        try:
            with translated("the Kafka consumer cannot go on"):
                self._consumer.subscribe(
                    self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
                )
                while not self._stopping.is_set():
                    has_room = self._room.acquire(timeout=_POLL_S)
                    # A pause that what was handed over led to is asked for before its room is free: obey it first.
                    self._make_calls()
                    if has_room and not self._read():
                        self._room.release()
                self._consumer.close()
        except BaseException as error:  # noqa: BLE001 - handed to the listener, which ends the process
            if not self._stopping.is_set():
                self._loop.call_soon_threadsafe(self._listener.failed, error)

    def _read(self) -> bool:
        """Hand over the records that are there; return whether there were any."""
        # consume(n, t) waits the whole t for n records; one poll, then what is there already, does not.
        first = self._consumer.poll(_POLL_S)
        if first is None:
            return False
        received_at_s = time.time()
        records: list[Record] = []
        for message in (first, *self._consumer.consume(_BATCH_RECORDS - 1, 0)):
            error = message.error()
            if error is not None:
                self._explain(error, message)
            elif (message.topic(), message.partition()) in self._assignment:
                self._missing.discard(str(message.topic()))
                records.append(record_of(message, received_at_s))
        if records:
            self._loop.call_soon_threadsafe(self._received, records, self._seeks)
        return bool(records)

    def _received(self, records: Sequence[Record], seeks: int) -> None:
        """Hand records over, in the event loop."""
        try:
            self._listener.received(records, seeks)
        finally:
            self._room.release()

    def _explain(self, error: KafkaError, message: Message) -> None:
        """Decide about an error that came in place of a record."""
        code = error.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            partition = (str(message.topic()), int(message.partition() or 0))
            self._loop.call_soon_threadsafe(self._listener.gap, partition, error.str())
            self._seek({partition: None})
        elif code == KafkaError.UNKNOWN_TOPIC_OR_PART:
            if message.topic() not in self._missing:
                self._missing.add(str(message.topic()))
                log.error("topic_missing", topic=message.topic(), remedy="livevec connector apply creates it")
        else:
            decision = failure(error, "the Kafka consumer cannot go on")
            if not isinstance(decision, RetryLater):
                raise decision
            log.warning("kafka_error", error=error.str(), topic=message.topic())

    def _make_calls(self) -> None:
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            call()

    def _pause(self, topics: frozenset[str]) -> None:
        self._paused = topics
        for held, call in ((True, self._consumer.pause), (False, self._consumer.resume)):
            call([TopicPartition(*p) for p in self._assignment if (p[0] in topics) == held])

    def _commit(self, offsets: Mapping[Partition, int], asynchronous: bool) -> None:
        if offsets:
            positions = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
            try:
                cast(Any, self._consumer).commit(offsets=positions, asynchronous=asynchronous)
            except KafkaException as error:
                log.warning("commit_failed", error=str(error))

    def _seek(self, offsets: Mapping[Partition, int | None]) -> None:
        """Assign the partitions anew; seek() is refused while a partition's fetcher is being reset."""
        owned = {partition: offset for partition, offset in offsets.items() if partition in self._assignment}
        if not owned:
            return
        try:
            self._consumer.incremental_unassign([TopicPartition(*partition) for partition in owned])
            self._consumer.incremental_assign(
                [TopicPartition(*p, _offset(offset)) for p, offset in owned.items()]
            )
        except KafkaException as error:
            raise StopProcess(
                f"cannot read {sorted(owned)} again ({error}); start the daemon again"
            ) from error
        self._pause(self._paused)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        names = [(p.topic, p.partition) for p in partitions]
        committed = dict.fromkeys(names) | self._committed(partitions)
        start = self._wait(self._listener.assigned(committed), dict.fromkeys(names))
        self._assignment |= set(names)
        consumer.incremental_assign([TopicPartition(*name, _offset(start[name])) for name in names])
        self._pause(self._paused)

    def _committed(self, partitions: list[TopicPartition]) -> dict[Partition, int | None]:
        while not self._stopping.is_set():
            try:
                committed = self._consumer.committed(partitions, timeout=5)
            except KafkaException as error:
                log.warning("committed_offsets_unavailable", error=str(error))
                continue
            return {(p.topic, p.partition): p.offset if p.offset >= 0 else None for p in committed}
        return {}

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        names = [(p.topic, p.partition) for p in partitions]
        offsets = self._wait(self._listener.revoking(names), {})
        self._assignment -= set(names)
        self._commit(offsets, asynchronous=False)
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        names = [(p.topic, p.partition) for p in partitions]
        self._assignment -= set(names)
        self._loop.call_soon_threadsafe(self._listener.lost, names)
        consumer.incremental_unassign(partitions)

    def _wait(self, work: Coroutine[Any, Any, T], otherwise: T) -> T:
        """Run the listener's coroutine in the loop and wait; `otherwise` if the loop ends first."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except (asyncio.CancelledError, RetryLater):
            return otherwise


def consumer_settings(settings: KafkaSettings) -> dict[str, Any]:
    """Return librdkafka's settings; the user's come last and win, except those that the rules of progress stand on."""
    return {
        # The defaults of the next two cost up to 500 ms and 1 s.
        "fetch.wait.max.ms": settings.fetch_wait_max_ms,
        "fetch.queue.backoff.ms": 1,
        "fetch.min.bytes": 1,
        "socket.nagle.disable": True,
        "session.timeout.ms": settings.session_timeout_ms,
        "heartbeat.interval.ms": max(1, settings.session_timeout_ms // 5),
        # Bounds of what librdkafka itself holds in memory.
        "queued.min.messages": 2000,
        "queued.max.messages.kbytes": 16_384,
        "reconnect.backoff.max.ms": 1000,
        "topic.metadata.refresh.interval.ms": 10_000,
        **settings.client,
        "bootstrap.servers": settings.bootstrap_servers,
        "group.id": settings.group_id,
        "partition.assignment.strategy": "cooperative-sticky",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
    }


class LibrdkafkaLog:
    """librdkafka's own log lines, as structlog events."""

    def log(self, level: int, message: str, *args: object) -> None:
        log.debug("librdkafka", message=message % args if args else message)


def _offset(offset: int | None) -> int:
    return OFFSET_BEGINNING if offset is None else offset


def record_of(message: Message, received_at_s: float) -> Record:
    """Return a record as the rest of the daemon takes it; not for a message that carries an error."""
    headers = message.headers()
    _, timestamp_ms = message.timestamp()
    return Record(
        topic=str(message.topic()),
        partition=int(message.partition() or 0),
        offset=int(message.offset() or 0),
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=tuple((header[0], _bytes(header[1])) for header in headers) if headers else (),
        appended_at_s=timestamp_ms / 1000 if timestamp_ms > 0 else received_at_s,
        received_at_s=received_at_s,
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value

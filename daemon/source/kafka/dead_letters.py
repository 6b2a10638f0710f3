"""The dead-letter topic: where a refused row waits for a person or a retry, with all that tells where it was."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from confluent_kafka import KafkaError, Message, Producer

from daemon.core.work import Refusal
from daemon.errors import RejectRow, RetryLater
from daemon.index.layout import document_key
from daemon.settings import KafkaSettings
from daemon.source.kafka.failures import RecordTooLarge, failure, translated
from daemon.source.kafka.reader import LibrdkafkaLog
from daemon.source.record import Record

_POLL_S = 0.5
"""Longest time that the poller's thread outlives the last delivery."""
_FLUSH_S = 5


@dataclass(frozen=True, slots=True)
class DeadLetterTopic:
    """Writes the dead letters of one pipeline. The text of a row is only written if the pipeline allows it.

    Attributes:
        keep_bytes: also write the original record's value.
        key_columns: the primary key's, for rows that were read from the table and have no record; its values stand
            as text in the dead letter's key.
    """

    producer: "DeadLetterProducer"
    topic: str
    pipeline: str
    keep_bytes: bool
    key_columns: Sequence[str] = ()

    async def put(self, refusal: Refusal, error: RejectRow) -> None:
        """Write a dead letter, and return once the broker has it.

        A record that is too large for the topic is named without its bytes; the header `livevec.bytes_left_out` says
        how many there were.

        Raises:
            RetryLater: Kafka is away.
            StopProcess: the topic is missing or forbidden, or takes not even the letter without the record's bytes.
        """
        record = refusal.record if isinstance(refusal.record, Record) else None
        headers: dict[str, str] = {
            "livevec.pipeline": self.pipeline,
            "livevec.document": refusal.id,
            "livevec.reason": error.reason,
            "livevec.message": str(error),
            "livevec.version": refusal.version.encode() if refusal.version else "",
            "livevec.topic": record.topic if record else "",
            "livevec.partition": str(record.partition) if record else "",
            "livevec.offset": str(record.offset) if record else "",
            "livevec.operation": refusal.operation.value,
            "livevec.committed_at_s": f"{refusal.committed_at_s:.6f}",
            "livevec.dead_lettered_at_s": f"{time.time():.6f}",
        }
        key = record.key if record else self._row_key(refusal.id)
        value = record.value if record and self.keep_bytes else None
        try:
            await self.producer.send(self.topic, key, value, headers)
        except RecordTooLarge:
            if value is None:
                raise
            headers["livevec.bytes_left_out"] = str(len(value))
            await self.producer.send(self.topic, key, None, headers)

    def _row_key(self, identifier: str) -> bytes:
        """Return the key of a row that was read from the table, as Debezium would write it but for its types."""
        if not self.key_columns:
            return identifier.encode()
        values = document_key(identifier, len(self.key_columns))
        return orjson.dumps(dict(zip(self.key_columns, values, strict=True)))


class DeadLetterProducer:
    """A Kafka producer whose deliveries can be awaited.

    confluent_kafka.aio.AIOProducer is not used: it takes no headers, which are all that a dead letter consists of.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        connection = {**settings.client, "bootstrap.servers": settings.bootstrap_servers}
        with translated("the dead-letter producer cannot be made"):
            self._producer = Producer(
                {**connection, "enable.idempotence": True, "linger.ms": 0}, logger=LibrdkafkaLog()
            )
        self._poller: asyncio.Task[None] | None = None
        self._waiting = 0

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]) -> None:
        """Write a record, and return once the broker has it.

        Raises:
            FailureClass: see `failures.failure`.
        """
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[KafkaError | None] = loop.create_future()

        def report(error: KafkaError | None, _: Message) -> None:
            """Take a delivery report, in the thread that polls."""
            loop.call_soon_threadsafe(settle, error)

        def settle(error: KafkaError | None) -> None:
            if not delivered.done():
                delivered.set_result(error)

        what = f"Kafka did not take a dead letter in {topic}"
        try:
            with translated(what):
                self._producer.produce(topic, value, key, headers=dict(headers), on_delivery=report)
        except BufferError as error:
            raise RetryLater("the dead-letter producer's queue is full; waiting for Kafka", 0.5) from error
        self._waiting += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            refusal = await delivered
        finally:
            self._waiting -= 1
        if refusal is not None:
            raise failure(refusal, what)

    async def _poll(self) -> None:
        """Serve delivery reports while somebody waits for one; poll() returns as soon as there is one."""
        while self._waiting:
            await asyncio.to_thread(self._producer.poll, _POLL_S)

    def close(self) -> None:
        """Wait a little for what is under way; whoever awaits it has to be cancelled before."""
        self._producer.flush(_FLUSH_S)

"""The dead-letter topic: where a refused row waits for a person or a retry, with all that tells where it was."""

import asyncio
import time
from collections.abc import Sequence

import orjson
from confluent_kafka import KafkaError, Message, Producer

from daemon.core.work import Refusal
from daemon.errors import RejectRow, RetryLater, StopProcess
from daemon.index.layout import document_key
from daemon.settings import KafkaSettings
from daemon.source.kafka.reader import LibrdkafkaLog, consumer_settings
from daemon.source.record import Record


class DeadLetterTopic:
    """Writes the dead letters of one pipeline. The text of a row is only written if the pipeline allows it.

    Args:
        producer: shared by the process.
        topic: the dead-letter topic.
        pipeline: its name.
        keep_bytes: also write the original record's value.
        key_columns: the primary key's, for rows that were read from the table and have no record; its values stand
            as text in the dead letter's key.
    """

    def __init__(
        self,
        producer: "DeadLetterProducer",
        topic: str,
        pipeline: str,
        keep_bytes: bool,
        key_columns: Sequence[str] = (),
    ) -> None:
        self._producer = producer
        self._key_columns = tuple(key_columns)
        self.topic = topic
        self._pipeline = pipeline
        self._keep_bytes = keep_bytes

    async def put(self, refusal: Refusal, error: RejectRow) -> None:
        """Write a dead letter; returns once the broker has it.

        Raises:
            RetryLater: Kafka is away.
            StopProcess: the topic is missing or forbidden.
        """
        record = refusal.record if isinstance(refusal.record, Record) else None
        version = refusal.version
        headers: dict[str, str] = {
            "livevec.pipeline": self._pipeline,
            "livevec.document": refusal.id,
            "livevec.reason": error.reason,
            "livevec.message": str(error),
            "livevec.version": version.encode() if version else "",
            "livevec.topic": record.topic if record else "",
            "livevec.partition": str(record.partition) if record else "",
            "livevec.offset": str(record.offset) if record else "",
            "livevec.operation": refusal.operation.value,
            "livevec.committed_at_s": f"{refusal.committed_at_s:.6f}",
            "livevec.dead_lettered_at_s": f"{time.time():.6f}",
        }
        key = record.key if record else self._row_key(refusal.id)
        value = record.value if record and self._keep_bytes else None
        await self._producer.send(self.topic, key, value, headers)

    def _row_key(self, identifier: str) -> bytes:
        """The key of a row that was read from the table, as Debezium would write it but for its types."""
        if not self._key_columns:
            return identifier.encode()
        values = document_key(identifier, len(self._key_columns))
        return orjson.dumps(dict(zip(self._key_columns, values, strict=True)))


class DeadLetterProducer:
    """A Kafka producer whose deliveries can be awaited."""

    def __init__(self, settings: KafkaSettings) -> None:
        connection = {
            name: value
            for name, value in consumer_settings(settings).items()
            if name in settings.client or name == "bootstrap.servers"
        }
        self._producer = Producer(
            {**connection, "enable.idempotence": True, "linger.ms": 0}, logger=LibrdkafkaLog()
        )
        self._poller: asyncio.Task[None] | None = None
        self._waiting = 0

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]) -> None:
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[None] = loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            if not delivered.done():
                if error is None:
                    delivered.set_result(None)
                else:
                    delivered.set_exception(_failure(error, topic))

        try:
            self._producer.produce(topic, value, key, headers=dict(headers), on_delivery=report)
        except BufferError as error:
            raise RetryLater("the dead-letter producer's queue is full; waiting for Kafka", 0.5) from error
        self._waiting += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.ensure_future(self._poll())
        try:
            await delivered
        finally:
            self._waiting -= 1

    async def _poll(self) -> None:
        while self._waiting:
            self._producer.poll(0)
            await asyncio.sleep(0.005)

    def close(self) -> None:
        self._producer.flush(5)


def _failure(error: KafkaError, topic: str) -> RetryLater | StopProcess:
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        return StopProcess(
            f"the dead-letter topic {topic} does not exist; `livevec connector apply` creates it"
        )
    if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.MSG_SIZE_TOO_LARGE):
        return StopProcess(
            f"Kafka refuses dead letters in {topic} ({error.str()}); allow them, nothing is dropped"
        )
    return RetryLater(f"Kafka did not take a dead letter ({error.str()})", 0.5)

"""Looking at what waits in Kafka, without moving any group's offsets: dead letters, and the records they tell of."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, TopicPartition

from daemon.errors import LivevecError, RetryLater, StopProcess
from daemon.settings import KafkaSettings
from daemon.source.kafka.failures import translated
from daemon.source.kafka.reader import LibrdkafkaLog, consumer_settings, record_of
from daemon.source.record import Coordinates, Record

_ANSWER_S = 10.0
_POLL_S = 0.1
_GONE = (
    KafkaError._PARTITION_EOF,
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused row, as the dead-letter topic tells it.

    Attributes:
        document: its id; empty where the record could not be decoded.
        key: of the refused record, or of the row as `DeadLetterTopic` writes it.
        reason: the class of the refusal, e.g. `oversized_text`.
        message: what was wrong; holds no text of the row.
        version: of the refused change, encoded; empty where it had none.
        record: the refused record; None for a row that was read from its table.
        committed_at_s: when the change was committed, or the row read.
        place: in the dead-letter topic.
        value: of the refused record, where the pipeline keeps it.
    """

    document: str
    key: bytes | None
    reason: str
    message: str
    version: str
    operation: str
    record: Coordinates | None
    committed_at_s: float
    dead_lettered_at_s: float
    place: Coordinates
    value: bytes | None = field(repr=False)

    @property
    def name(self) -> str:
        """What the row is called where dead letters are listed: its id, or its record's coordinates."""
        return self.document or f"@{self.record or self.place}"


@dataclass(frozen=True, slots=True)
class Letters:
    """The newest dead letters of a topic, oldest first, and how many before them were left out."""

    letters: tuple[DeadLetter, ...]
    left_out: int


def parse(record: Record) -> DeadLetter:
    """Return the dead letter in a record of a dead-letter topic; what its headers lack stays empty."""
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers if value is not None}

    def text(name: str) -> str:
        return headers.get(f"livevec.{name}", "")

    def number(name: str, otherwise: float) -> float:
        try:
            return float(text(name))
        except ValueError:
            return otherwise

    known = text("topic") and text("partition").isdigit() and text("offset").isdigit()
    return DeadLetter(
        document=text("document"),
        key=record.key,
        reason=text("reason") or "unknown",
        message=text("message"),
        version=text("version"),
        operation=text("operation"),
        record=Coordinates(text("topic"), int(text("partition")), int(text("offset"))) if known else None,
        committed_at_s=number("committed_at_s", record.appended_at_s),
        dead_lettered_at_s=number("dead_lettered_at_s", record.appended_at_s),
        place=Coordinates(record.topic, record.partition, record.offset),
        value=record.value,
    )


def read_letters(settings: KafkaSettings, topic: str, count_max: int) -> Letters:
    """Return the newest dead letters, at most `count_max` of each partition, up to the topic's end as it is now.

    Raises:
        RetryLater: Kafka does not answer.
        LivevecError: the topic does not exist.
    """
    with _consumer(settings) as consumer:
        metadata = consumer.list_topics(topic, _ANSWER_S).topics[topic]
        if metadata.error is not None:
            raise LivevecError(
                f"the topic {topic} cannot be read ({metadata.error.str()}); was it ever created?"
            )
        letters: list[DeadLetter] = []
        left_out = 0
        for partition in metadata.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), _ANSWER_S)
            start = max(low, high - count_max)
            left_out += start - low
            letters += map(parse, _until(consumer, Coordinates(topic, partition, start), high))
    return Letters(tuple(sorted(letters, key=lambda letter: letter.dead_lettered_at_s)), left_out)


def read_committed(settings: KafkaSettings, topic: str) -> dict[int, int]:
    """Return the next offset that the settings' consumer group would read of each partition; 0 where it has read none.

    Raises:
        RetryLater: Kafka does not answer.
    """
    with _consumer(settings) as consumer:
        partitions = consumer.list_topics(topic, _ANSWER_S).topics[topic].partitions
        offsets = consumer.committed([TopicPartition(topic, number) for number in partitions], _ANSWER_S)
        return {offset.partition: max(0, offset.offset) for offset in offsets}


def read_partitions(settings: KafkaSettings, topic: str) -> int:
    """Return how many partitions a topic has; 0 where there is none of that name.

    Raises:
        RetryLater: Kafka does not answer.
    """
    with _consumer(settings) as consumer:
        return len(consumer.list_topics(topic, _ANSWER_S).topics[topic].partitions)


def read_records(settings: KafkaSettings, places: Sequence[Coordinates]) -> list[Record | None]:
    """Return the record at each place; None where it is gone: by retention, compaction, or with its topic.

    Raises:
        RetryLater: Kafka does not answer.
    """
    with _consumer(settings) as consumer:
        # Of a partition that does not exist a consumer says nothing, for ever.
        there = {
            (topic, partition)
            for topic in {place.topic for place in places}
            for partition in consumer.list_topics(topic, _ANSWER_S).topics[topic].partitions
        }
        return [
            next(_until(consumer, place, place.offset + 1), None)
            if (place.topic, place.partition) in there
            else None
            for place in places
        ]


def _until(consumer: Consumer, start: Coordinates, end: int) -> Iterator[Record]:
    """Return records of one partition from `start` to before the offset `end`; those that are gone are missing."""
    if start.offset >= end:
        return
    partition = TopicPartition(start.topic, start.partition, start.offset)
    consumer.assign([partition])
    ends_at = time.monotonic() + _ANSWER_S
    while True:
        message = consumer.poll(_POLL_S)
        if message is None:
            if time.monotonic() > ends_at:
                raise RetryLater(f"Kafka does not give the records of {start.topic}; is it up?", 1.0)
            continue
        error = message.error()
        if error is not None:
            if error.code() in _GONE:
                return
            if not error.retriable() and error.code() != KafkaError._ALL_BROKERS_DOWN:
                raise StopProcess(
                    f"Kafka does not let {start.topic} be read ({error.str()}); grant read on the topic"
                )
            continue
        record = record_of(message, time.time())
        if record.offset >= end:
            return
        yield record
        if record.offset == end - 1:
            return
        ends_at = time.monotonic() + _ANSWER_S


@contextlib.contextmanager
def _consumer(settings: KafkaSettings) -> Iterator[Consumer]:
    """Open a consumer that joins no group: its partitions are assigned by hand."""
    with translated("Kafka does not answer"):
        consumer = Consumer(
            {**consumer_settings(settings), "enable.partition.eof": True}, logger=LibrdkafkaLog()
        )
        try:
            yield consumer
        finally:
            consumer.close()

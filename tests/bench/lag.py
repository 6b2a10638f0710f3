"""Memory of the daemon while it catches up with many changes that wait in the topic."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import orjson
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from daemon.bench.latency import OnProgress
from daemon.errors import LivevecError

_RECORD_TIMEOUT_S = 30.0
_FLUSH_TIMEOUT_S = 60.0
_SAMPLE_S = 0.25
_PROGRESS_RECORDS = 10_000


@dataclass(frozen=True)
class RecordedChange:
    """One record as the connector wrote it."""

    key: bytes
    value: bytes


class CatchingUp(Protocol):
    """A system that catches up with its topic."""

    def acknowledged(self) -> int: ...

    def queued(self) -> int: ...

    def rss_mb(self) -> float: ...


@dataclass(frozen=True)
class LagSample:
    """Memory and queue of the daemon at one moment."""

    at_s: float
    rss_mb: float
    queue_changes: int


@dataclass(frozen=True)
class LagReport:
    """`changes` waited when the daemon was started; `done` of them are searchable after `seconds`."""

    changes: int
    tokens: int
    record_bytes: int
    seconds: float
    done: int
    rss_mb_first: float
    rss_mb_max: float
    queue_changes_max: int
    samples: list[LagSample]


def second_record(kafka: Mapping[str, Any], topic: str) -> RecordedChange:
    """Return the second record of a topic: of its first transaction a new connector does not know the place in the log.

    Raises:
        LivevecError: no second record came.
    """
    consumer = Consumer({**kafka, "group.id": f"{topic}.template", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        messages = consumer.consume(2, _RECORD_TIMEOUT_S)
    finally:
        consumer.close()
    message = messages[1] if len(messages) == 2 else None
    key = message.key() if message else None
    value = message.value() if message else None
    if not isinstance(key, bytes) or not isinstance(value, bytes):
        raise LivevecError(f"no change arrived in topic {topic}; see `livevec connector status`")
    return RecordedChange(key, value)


def changes(template: RecordedChange, texts: Sequence[str], count: int) -> Iterator[RecordedChange]:
    """Yield `count` inserts of one transaction, like that of the template: ids from 3 on, each text new."""
    key, value = orjson.loads(template.key), orjson.loads(template.value)
    for number, text in zip(range(3, count + 3), cycle(texts), strict=False):
        key["id"] = value["after"]["id"] = number
        value["after"]["body"] = f"{text} {number}"
        value["source"]["lsn"] += 1
        yield RecordedChange(orjson.dumps(key), orjson.dumps(value))


def fill(
    kafka: Mapping[str, Any],
    topic: str,
    template: RecordedChange,
    texts: Sequence[str],
    count: int,
    on_progress: OnProgress,
) -> None:
    """Append `changes` to the topic.

    Raises:
        LivevecError: Kafka did not accept them.
    """
    producer = Producer({**kafka, "linger.ms": 20, "partitioner": "murmur2_random"})
    try:
        for number, record in enumerate(changes(template, texts, count), 1):
            while True:
                try:
                    producer.produce(topic, record.value, record.key)
                    break
                except BufferError:
                    producer.poll(0.05)
            if number % _PROGRESS_RECORDS == 0:
                producer.poll(0)
                on_progress("fill", number, count)
        unsent = producer.flush(_FLUSH_TIMEOUT_S)
    except KafkaException as error:
        raise LivevecError(
            f"Kafka does not accept changes ({error.args[0].str()}); see `livevec status`"
        ) from error
    if unsent:
        raise LivevecError(
            f"Kafka did not accept {unsent} changes in {_FLUSH_TIMEOUT_S:g} s; see `livevec status`"
        )


def watch(
    system: CatchingUp, count: int, seconds: float, on_progress: OnProgress
) -> tuple[int, list[LagSample]]:
    """Sample memory for `seconds`, or until all changes are done; return how many are done, and the samples.

    Raises:
        LivevecError: the system has ended.
    """
    began_s = time.monotonic()
    samples: list[LagSample] = []
    done = 0
    while (at_s := time.monotonic() - began_s) < seconds and done < count:
        samples.append(LagSample(round(at_s, 2), system.rss_mb(), system.queued()))
        done = system.acknowledged()
        on_progress("catch up", done, count)
        time.sleep(_SAMPLE_S)
    return done, samples


def lag_report(
    changes: int, tokens: int, record_bytes: int, done: int, samples: list[LagSample]
) -> LagReport:
    """Sum up the samples."""
    return LagReport(
        changes=changes,
        tokens=tokens,
        record_bytes=record_bytes,
        seconds=samples[-1].at_s,
        done=done,
        rss_mb_first=samples[0].rss_mb,
        rss_mb_max=max(sample.rss_mb for sample in samples),
        queue_changes_max=max(sample.queue_changes for sample in samples),
        samples=samples,
    )

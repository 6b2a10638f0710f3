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
class Template:
    """One record as the connector wrote it."""

    key: bytes
    value: bytes


class CatchingUp(Protocol):
    def acknowledged(self) -> int: ...

    def queued(self) -> int: ...

    def rss_mb(self) -> float: ...


@dataclass(frozen=True)
class LagSample:
    at_s: float
    rss_mb: float
    queue_changes: int


def second_record(kafka: Mapping[str, Any], topic: str) -> Template:
    """The second record of a topic: a new connector does not know the place in the log of its first transaction.

    Raises:
        LivevecError: none came.
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
        raise LivevecError(f"no change came to {topic}; see `livevec connector status`")
    return Template(key, value)


def changes(template: Template, texts: Sequence[str], count: int) -> Iterator[Template]:
    """So many inserts of one transaction, like that of the template: ids from 3 on, each text new."""
    key, value = orjson.loads(template.key), orjson.loads(template.value)
    for number, text in zip(range(3, count + 3), cycle(texts), strict=False):
        key["id"] = value["after"]["id"] = number
        value["after"]["body"] = f"{text} {number}"
        value["source"]["lsn"] += 1
        yield Template(orjson.dumps(key), orjson.dumps(value))


def fill(
    kafka: Mapping[str, Any],
    topic: str,
    template: Template,
    texts: Sequence[str],
    count: int,
    on_progress: OnProgress,
) -> None:
    """Append `changes` to the topic.

    Raises:
        LivevecError: Kafka did not take them.
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
        left = producer.flush(_FLUSH_TIMEOUT_S)
    except KafkaException as error:
        raise LivevecError(
            f"Kafka does not take changes ({error.args[0].str()}); see `livevec status`"
        ) from error
    if left:
        raise LivevecError(
            f"Kafka did not take {left} changes in {_FLUSH_TIMEOUT_S:g} s; see `livevec status`"
        )


def watch(
    system: CatchingUp, count: int, seconds: float, on_progress: OnProgress
) -> tuple[int, list[LagSample]]:
    """Sample memory for so long, or until all changes are done; answers how many are, and the samples.

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

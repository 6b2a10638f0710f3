"""The Kafka topics of a source: data, heartbeat, dead letters."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from connectors.definition import RECORD_BYTES_MAX, heartbeat_topic
from connectors.rules import Finding, failed, passed
from daemon.errors import ConnectorError
from daemon.settings import KafkaSettings, Pipeline, PostgresSource

_TIMEOUT_S = 10.0
_LEGAL = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that livevec needs, and how it would be made."""

    name: str
    partitions: int
    purpose: str


def topics(source: PostgresSource, pipelines: Sequence[Pipeline], kafka: KafkaSettings) -> list[Topic]:
    """Return all topics of a source and its pipelines, each once."""
    needed = [
        *(Topic(own.topic_name, source.topic_partitions, f"changes of {own.table}") for own in pipelines),
        Topic(heartbeat_topic(source), 1, "heartbeats"),
        Topic(source.message_topic, 1, "messages that prove how far the log was read"),
        *(Topic(kafka.dead_letter_topic(own.name), 1, f"dead letters of {own.name}") for own in pipelines),
    ]
    return list({topic.name: topic for topic in needed}.values())


def check_topics(
    source: PostgresSource, pipelines: Sequence[Pipeline], kafka: KafkaSettings
) -> list[Finding]:
    """Check that Kafka answers, and that every topic is there and takes records as large as the connector sends."""
    needed = topics(source, pipelines, kafka)
    illegal = [_name(topic) for topic in needed if not _LEGAL.fullmatch(topic.name)]
    if illegal:
        return illegal
    try:
        with _admin(kafka) as admin:
            present = set(admin.list_topics(timeout=_TIMEOUT_S).topics)
            limits = _record_bytes_max(admin, [topic.name for topic in needed if topic.name in present])
    except ConnectorError as error:
        return [failed("kafka", str(error).removesuffix(f"; {error.remedy}"), error.remedy)]
    return [
        passed("kafka", f"Kafka answers at {kafka.bootstrap_servers}"),
        *(
            _takes_long_records(topic, limits[topic.name])
            if topic.name in present
            else _missing(topic, present)
            for topic in needed
        ),
    ]


def create_topics(source: PostgresSource, pipelines: Sequence[Pipeline], kafka: KafkaSettings) -> list[str]:
    """Create the topics that are missing; return their names.

    Raises:
        ConnectorError: Kafka is away, or does not let us.
    """
    needed = topics(source, pipelines, kafka)
    for topic in needed:
        if not _LEGAL.fullmatch(topic.name):
            finding = _name(topic)
            raise ConnectorError(finding.message, finding.remedy)
    with _admin(kafka) as admin:
        present = admin.list_topics(timeout=_TIMEOUT_S).topics
        requests = [
            NewTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=source.topic_replication_factor,
                config={"cleanup.policy": "delete", "max.message.bytes": str(RECORD_BYTES_MAX)},
            )
            for topic in needed
            if topic.name not in present
        ]
        created = admin.create_topics(requests, operation_timeout=_TIMEOUT_S) if requests else {}
    for name, future in created.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise ConnectorError(
                    f"topic {name!r} cannot be created: {error.args[0].str()}",
                    "create it by hand, or set topic_replication_factor to at most the number of brokers",
                ) from error
    return list(created)


@contextmanager
def _admin(kafka: KafkaSettings) -> Iterator[AdminClient]:
    """Open a client, and raise ConnectorError where Kafka does not answer it."""
    try:
        # log_level 0: librdkafka would write its connection errors to stderr; they come back as results anyway.
        yield AdminClient({"log_level": 0, **kafka.client, "bootstrap.servers": kafka.bootstrap_servers})
    except KafkaException as error:
        raise ConnectorError(
            f"Kafka at {kafka.bootstrap_servers} does not answer: {error.args[0].str()}",
            "check that it is up, and [kafka] bootstrap_servers and client",
        ) from error


def _record_bytes_max(admin: AdminClient, names: Sequence[str]) -> dict[str, int]:
    if not names:
        return {}
    futures = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in names])
    return {
        resource.name: int(future.result(_TIMEOUT_S)["max.message.bytes"].value)
        for resource, future in futures.items()
    }


def _missing(topic: Topic, present: set[str]) -> Finding:
    near = difflib.get_close_matches(topic.name, present, n=1, cutoff=0.8)
    hint = f" (there is {near[0]!r})" if near else ""
    return failed(
        "topic",
        f"topic {topic.name!r} ({topic.purpose}) does not exist{hint}",
        f"`livevec connector apply` creates it where create_topics is true; by hand: kafka-topics.sh --create "
        f"--topic {topic.name} --partitions {topic.partitions} --config max.message.bytes={RECORD_BYTES_MAX}",
    )


def _takes_long_records(topic: Topic, limit: int) -> Finding:
    if limit >= RECORD_BYTES_MAX:
        return passed("topic", f"topic {topic.name!r} is there")
    return failed(
        "topic_record_size",
        f"topic {topic.name!r} takes records of {limit} bytes, the connector may send {RECORD_BYTES_MAX}: "
        "one long row would stop it",
        f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} "
        f"--add-config max.message.bytes={RECORD_BYTES_MAX}",
    )


def _name(topic: Topic) -> Finding:
    return failed(
        "topic_name",
        f"{topic.name!r} ({topic.purpose}) is no legal name of a topic; Debezium replaces what is not allowed",
        f"set the pipeline's `topic` to {re.sub('[^A-Za-z0-9._-]', '_', topic.name)[:249]!r}",
    )

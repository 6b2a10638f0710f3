"""A PostgreSQL source with its connector, for tests of what Debezium writes; no daemon, no index."""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

from connectors import slot
from connectors.connect import KafkaConnect
from connectors.definition import heartbeat_topic, render
from connectors.prepare import prepare
from connectors.tables import exclusions
from daemon.settings import ConnectSettings, KafkaSettings, MetadataField, Pipeline, PostgresSource
from deploy.local.stack import Addresses


@dataclass(frozen=True)
class Envelope:
    """One record of a table's topic; `value` is None for a tombstone."""

    key: dict[str, Any] | None
    value: dict[str, Any] | None
    headers: Mapping[str, bytes]

    appended_at_s: float

    @property
    def delay_ms(self) -> float:
        """From the commit to Kafka."""
        assert self.value is not None
        return self.appended_at_s * 1e3 - float(self.value["source"]["ts_us"]) / 1e3

    @property
    def operation(self) -> str:
        return "" if self.value is None else str(self.value["op"])

    @property
    def after(self) -> dict[str, Any]:
        assert self.value is not None
        return dict(self.value["after"])

    @property
    def lsn(self) -> int:
        assert self.value is not None
        return int(self.value["source"]["lsn"])

    @property
    def xid(self) -> int:
        assert self.value is not None
        return int(self.value["source"]["txId"])

    @property
    def sequence(self) -> tuple[int | None, int]:
        """(end of the commit before, lsn), as Debezium says them."""
        assert self.value is not None
        before, lsn = json.loads(self.value["source"]["sequence"])
        return (None if before is None else int(before)), int(lsn)


class CapturedSource:
    """One source under a name of its own; its tables are created through `db`."""

    def __init__(self, addresses: Addresses, dsn: str | None = None, **settings: Any) -> None:
        self.name = f"s{uuid.uuid4().hex[:8]}"
        self.kafka = KafkaSettings(bootstrap_servers=addresses.kafka_bootstrap_servers)
        self.client = KafkaConnect(ConnectSettings(url=addresses.connect_url))
        self.source = PostgresSource(
            name=self.name,
            dsn=SecretStr(dsn or addresses.postgres_dsn),
            **{"snapshot_mode": "no_data", **settings},
        )
        self.db = psycopg.connect(self.source.dsn.get_secret_value(), autocommit=True)
        self.pipelines: list[Pipeline] = []

    def execute(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Run `query`, in which $S stands for the source's own name."""
        cursor = self.db.execute(query.replace("$S", self.name), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def pipeline(self, table: str, text: str, metadata: Sequence[MetadataField] = ()) -> Pipeline:
        """Add a pipeline over `public.<table>`."""
        added = Pipeline(
            name=f"{self.name}-{len(self.pipelines)}",
            source=self.name,
            table=f"public.{table.replace('$S', self.name)}",
            text=text,
            metadata=tuple(metadata),
        )
        self.pipelines.append(added)
        return added

    def definition(self) -> dict[str, str]:
        return render(self.source, self.pipelines, exclusions(self.source, self.pipelines))

    def start(self, definition: Mapping[str, str] | None = None, deadline_s: float = 60.0) -> None:
        """Create publication and topics, apply the connector, wait until it streams."""
        prepare(self.source, self.pipelines, self.kafka)
        self.client.apply(self.name, definition or self.definition())
        self.client.wait_until_streaming(self.source, deadline_s)

    def envelopes(
        self, table: str, enough: Callable[[list[Envelope]], bool], deadline_s: float = 30.0
    ) -> list[Envelope]:
        """Read the table's topic from its beginning until `enough`."""
        topic = f"{self.name}.public.{table.replace('$S', self.name)}"
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "group.id": self.name,
                "fetch.wait.max.ms": 5,
                "fetch.message.max.bytes": 16 * 1024 * 1024,
            }
        )
        found: list[Envelope] = []
        end = time.monotonic() + deadline_s
        try:
            consumer.assign([TopicPartition(topic, 0, 0)])
            while not enough(found):
                assert time.monotonic() < end, (
                    f"not within {deadline_s} s; so far: {[one.operation for one in found]}"
                )
                for message in consumer.consume(500, timeout=0.1):
                    assert message.error() is None, message.error()
                    found.append(_envelope(message))
        finally:
            consumer.close()
        return found

    def stop(self) -> None:
        """Remove the connector, the slot, the publication and the topics; tables stay."""
        # Its stored offsets may stay, which take Connect a second to remove: no other connector gets this name.
        self.client.delete(self.source, with_slot=False)
        slot.drop(self.source, 30)
        self.client.close()
        self.execute(f"drop publication if exists {self.source.publication_name}")
        self.db.close()
        admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers})
        names = [
            name
            for name in admin.list_topics(timeout=10).topics
            if name.startswith((f"{self.name}.", f"{self.name}-"))
        ]
        for deleted in admin.delete_topics([*names, heartbeat_topic(self.source)]).values():
            deleted.exception()


def count(number: int) -> Callable[[list[Envelope]], bool]:
    """Enough when there are that many records."""
    return lambda found: len(found) >= number


def end_offset(kafka: KafkaSettings, topic: str) -> int | None:
    """How many records a topic of one partition has had; None when there is no such topic."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test-end-offset"})
    try:
        if topic not in consumer.list_topics(timeout=10).topics:
            return None
        return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)[1])
    finally:
        consumer.close()


def _envelope(message: Any) -> Envelope:
    key, value = message.key(), message.value()
    return Envelope(
        None if key is None else json.loads(key),
        None if value is None else json.loads(value),
        dict(message.headers() or []),
        message.timestamp()[1] / 1e3,
    )

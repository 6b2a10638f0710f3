"""The consumer thread against a real broker."""

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from daemon.settings import KafkaSettings
from daemon.source.kafka.reader import KafkaReader, Partition
from daemon.source.record import Record
from deploy.local.stack import Stack

RECORDS = 20_000


@pytest.fixture
def topic(stack: Stack) -> Iterator[str]:
    """With RECORDS records."""
    name = f"t{uuid.uuid4().hex[:8]}"
    servers = {"bootstrap.servers": stack.addresses().kafka_bootstrap_servers}
    admin = AdminClient({**servers})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result()
    producer = Producer(servers)
    for number in range(RECORDS):
        producer.produce(name, str(number), str(number))
        producer.poll(0)
    assert producer.flush(30) == 0
    yield name
    admin.delete_topics([name])[name].result()


class FullQueue:
    """Pauses at the first records, having kept the loop busy for a while."""

    def __init__(self, topic: str, busy_s: float) -> None:
        self._topic = topic
        self._busy_s = busy_s
        self.reader: KafkaReader | None = None
        self.after_pause: list[Record] = []
        self.paused = asyncio.Event()

    def received(self, records: Sequence[Record], seeks: int) -> None:
        if self.paused.is_set():
            self.after_pause += records
            return
        assert self.reader is not None
        ends_at = time.monotonic() + self._busy_s
        while time.monotonic() < ends_at:
            time.sleep(0.01)
        self.reader.pause({self._topic})
        self.paused.set()

    async def assigned(self, committed: Mapping[Partition, int | None]) -> Mapping[Partition, int | None]:
        return dict.fromkeys(committed)

    async def revoking(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        return {}

    def lost(self, partitions: Sequence[Partition]) -> None:
        raise AssertionError("the group has one member")

    def gap(self, partition: Partition, reason: str) -> None:
        raise AssertionError(reason)

    def failed(self, error: BaseException) -> None:
        raise error


async def test_a_busy_loop_does_not_find_all_that_waits_in_the_topic(stack: Stack, topic: str) -> None:
    listener = FullQueue(topic, busy_s=1.0)
    settings = KafkaSettings(
        bootstrap_servers=stack.addresses().kafka_bootstrap_servers, group_id=topic, session_timeout_ms=6000
    )
    reader = listener.reader = KafkaReader(settings, [topic], listener, asyncio.get_running_loop())
    reader.start()
    try:
        async with asyncio.timeout(60):
            await listener.paused.wait()
            # Answered by the thread after it has paused, and after what it had read before was told here.
            await reader.partitions(topic)
    finally:
        await asyncio.to_thread(reader.stop)
    assert len(listener.after_pause) <= 1_500

"""The fakes of the shell answer as the real servers do; tests/unit/shell/test_fakes.py asks the fakes alone."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis.asyncio import Redis

from daemon.settings import KafkaSettings
from daemon.source.kafka.reader import KafkaReader
from deploy.local.stack import Stack
from tests.support.redis_server import RedisServer as RealServer
from tests.support.redis_server import redis_server
from tests.support.shell import clock
from tests.support.shell.clock import VirtualLoop
from tests.support.shell.faults import Faults
from tests.support.shell.protocols import reader_tells, redis_answers, search_answers
from tests.support.shell.redis import RedisServer
from tests.unit.shell.test_fakes import READER_TELLS, TOPIC


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    with redis_server(tmp_path, search=True) as server:
        yield server


Ask = Callable[[Any], Coroutine[Any, Any, list[tuple[str, object]]]]


@pytest.mark.parametrize("ask", [redis_answers, search_answers])
def test_redis_answers_what_the_fake_does(server: RealServer, ask: Ask) -> None:
    async def real() -> list[tuple[str, object]]:
        client = Redis(unix_socket_path=server.socket_path, protocol=3)
        try:
            return await ask(client)
        finally:
            await client.aclose()

    async def fake(_: VirtualLoop) -> list[tuple[str, object]]:
        return await ask(RedisServer(Faults()).client())

    assert asyncio.run(real()) == clock.run(fake)


async def test_a_reader_of_a_broker_tells_what_the_fake_does(stack: Stack) -> None:
    topic = f"t{uuid.uuid4().hex[:8]}"
    servers: dict[str, str | int | float | bool] = {
        "bootstrap.servers": stack.addresses().kafka_bootstrap_servers
    }
    admin, producer = AdminClient(servers), Producer(servers)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    settings = KafkaSettings(
        bootstrap_servers=stack.addresses().kafka_bootstrap_servers, group_id=topic, session_timeout_ms=6000
    )

    async def append(count: int) -> None:
        for _ in range(count):
            producer.produce(topic, b"value", b"key")
        assert await asyncio.to_thread(producer.flush, 30) == 0

    async def forget_before(offset: int) -> None:
        partition = TopicPartition(topic, 0, offset)
        [deleted] = admin.delete_records([partition]).values()
        await asyncio.to_thread(deleted.result)

    told = await reader_tells(
        topic,
        lambda listener: KafkaReader(settings, [topic], listener, asyncio.get_running_loop()),
        append,
        forget_before,
    )
    admin.delete_topics([topic])[topic].result()
    assert eval(repr(told).replace(topic, TOPIC[0])) == READER_TELLS

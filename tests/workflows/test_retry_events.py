"""Dead letters of an event topic: the event is had again from the dead letter, or from where it was read first."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from daemon.config import load
from deploy.local.stack import Stack
from tests.support.mirrored_table import DaemonProcess, WorkerProcess, wait_until
from tests.support.ports import free_port
from tests.workflows.retries import Retries
from workflows.retry.contract import GivenUp, Selection, TryOutcome
from workflows.retry.workflow import Retry

KEPT = "keep_bytes_in_dead_letters = true"


class Notes:
    """One pipeline of events whose texts may have 20 bytes, in the daemon; in the worker's configuration 2,000."""

    def __init__(self, stack: Stack, folder: Path, more: str) -> None:
        addresses = stack.addresses()
        self.name = f"n{uuid.uuid4().hex[:8]}"
        self.addresses = addresses
        self.redis = Redis.from_url(addresses.redis_url, decode_responses=True)
        self.admin = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers})
        self.topics = [self.name, f"{self.name}.livevec.dead_letters"]
        for created in self.admin.create_topics([NewTopic(t, 1, 1) for t in self.topics]).values():
            created.result()
        self._folder = folder
        self._ports = [free_port() for _ in range(3)]
        self._text = f"""
            [kafka]
            bootstrap_servers = "{addresses.kafka_bootstrap_servers}"
            group_id = "{self.name}"
            [connect]
            url = "{addresses.connect_url}"
            [redis]
            url = "{addresses.redis_url}"
            [embedding]
            url = "{addresses.triton_grpc}"
            [telemetry]
            address = "127.0.0.1:{self._ports[0]}"
            [temporal]
            address = "{addresses.temporal_address}"
            ui_url = "{addresses.temporal_ui_url}"
            task_queue = "{self.name}"
            [temporal.worker]
            deployment = "{self.name}"
            metrics_address = "127.0.0.1:{self._ports[1]}"
            sdk_metrics_address = "127.0.0.1:{self._ports[2]}"
            [retry_dead_letters]
            pause_s_min = 600.0
            [[sources]]
            name = "app"
            kind = "events"
            [[pipelines]]
            name = "{self.name}"
            source = "app"
            topic = "{self.name}"
            text = "{{text}}"
            text_bytes_max = 20
            {more}
        """
        self.config_path = folder / "events.toml"
        self.config_path.write_text(self._text)
        self.config = load(self.config_path)

    def daemon(self) -> DaemonProcess:
        return DaemonProcess(self.config_path, self._folder / "daemon.log", self._ports[0]).wait_ready()

    def worker(self, redis: str = "") -> WorkerProcess:
        """One that takes longer texts; `redis`: more of its settings."""
        config = self._folder / "worker.toml"
        text = self._text.replace("text_bytes_max = 20", "text_bytes_max = 2000")
        config.write_text(text.replace("[redis]", f"[redis]\n{redis}"))
        worker = WorkerProcess(config, self._folder / "worker.log", *self._ports[1:])
        worker.wait_ready()
        return worker

    def publish(self, key: str, value: object) -> None:
        producer = Producer({"bootstrap.servers": self.addresses.kafka_bootstrap_servers})
        producer.produce(self.name, None if value is None else orjson.dumps(value), key)
        producer.flush(10)

    def forget_all_records(self) -> None:
        """As retention does."""
        end = TopicPartition(self.name, 0, -1)
        for deleted in self.admin.delete_records([end]).values():
            deleted.result()

    def texts(self) -> dict[Any, Any]:
        found = {}
        for key in self.redis.scan_iter(match=f"lv:{self.name}:1:doc:*", count=1000):
            identifier, text = self.redis.hmget(key, "id", "text")
            found[identifier] = text
        return found

    def close(self) -> None:
        for deleted in self.admin.delete_topics(self.topics).values():
            deleted.exception()
        if f"{self.name}:1" in self.redis.execute_command("FT._LIST"):
            self.redis.execute_command("FT.DROPINDEX", f"{self.name}:1", "DD")
        for key in self.redis.scan_iter(match=f"lv:*{self.name}*", count=1000):
            self.redis.delete(key)


@pytest.fixture
def notes(stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Notes]:
    notes = Notes(stack, tmp_path, getattr(request, "param", ""))
    try:
        yield notes
    finally:
        notes.close()


async def test_an_event_is_read_again_where_it_was_read_first(notes: Notes) -> None:
    retries = await Retries.of(notes)
    with closing(notes.daemon()) as daemon, closing(notes.worker()):
        for key in ("long", "replaced", "deleted"):
            notes.publish(key, {"text": f"{key}, and of more than 20 bytes"})
        await retries.until_held("long", "replaced", "deleted")
        notes.publish("replaced", {"text": "short"})
        notes.publish("deleted", None)
        wait_until(lambda: daemon.outcomes().get("deleted") == 1)
        await retries.handle.execute_update(Retry.try_now, Selection())
        end = await retries.handle.result()
        assert notes.texts() == {"long": "long, and of more than 20 bytes", "replaced": "short"}
        assert end.totals == {TryOutcome.APPLIED: 1, TryOutcome.SUPERSEDED: 2}


async def test_an_event_that_is_gone_is_given_up_and_still_shown(notes: Notes) -> None:
    retries = await Retries.of(notes)
    with closing(notes.daemon()), closing(notes.worker()):
        notes.publish("a", {"text": "of more than 20 bytes"})
        await retries.until_held("a")
        notes.forget_all_records()
        await retries.handle.execute_update(Retry.try_now, Selection())
        await retries.until_tried(TryOutcome.GONE)
        held = await retries.until_held("a")
        assert (held["a"].given_up, held["a"].letter.reason) == (GivenUp.RECORD_GONE, "oversized_text")
        assert notes.texts() == {}
        await retries.handle.execute_update(Retry.drop, Selection(key="a"))
        assert (await retries.handle.result()).totals == {TryOutcome.GONE: 1, TryOutcome.DROPPED: 1}


async def test_an_event_that_a_forgotten_delete_may_have_followed_is_given_up(notes: Notes) -> None:
    retries = await Retries.of(notes)
    with closing(notes.daemon()), closing(notes.worker(redis="delete_marker_ttl_s = 1")):
        notes.publish("a", {"text": "of more than 20 bytes"})
        held = await retries.until_held("a")
        await until_passed(held["a"].letter.at_s + 0.6)
        await retries.handle.execute_update(Retry.try_now, Selection())
        await retries.until_tried(TryOutcome.TOO_OLD)
        assert (await retries.held())["a"].given_up is GivenUp.AGE
        assert notes.texts() == {}
        await retries.handle.execute_update(Retry.drop, Selection())


async def until_passed(at_s: float) -> None:
    while time.time() < at_s:  # noqa: ASYNC110 - a moment in time is what is waited for
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("notes", [KEPT], indirect=True)
async def test_an_event_that_is_gone_is_had_from_a_dead_letter_that_kept_it(notes: Notes) -> None:
    retries = await Retries.of(notes)
    with closing(notes.daemon()), closing(notes.worker()):
        notes.publish("a", {"text": "of more than 20 bytes"})
        await retries.until_held("a")
        notes.forget_all_records()
        await retries.handle.execute_update(Retry.try_now, Selection())
        assert (await retries.handle.result()).totals == {TryOutcome.APPLIED: 1}
        assert notes.texts() == {"a": "of more than 20 bytes"}

"""Event topics: records of applications without a database."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from redis import Redis

from deploy.local.stack import Addresses, Stack
from tests.support.mirrored_table import METRICS, DaemonProcess, wait_until
from tests.support.ports import free_port

PIPELINE = "notes"


class Notes:
    """One events pipeline, its topics and a daemon."""

    def __init__(self, addresses: Addresses, folder: Path) -> None:
        self.addresses = addresses
        self.folder = folder
        self.redis = Redis.from_url(addresses.redis_url, decode_responses=True)
        self.admin = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers})
        self.topics = [PIPELINE, f"{PIPELINE}.livevec.dead_letters"]
        for created in self.admin.create_topics([NewTopic(t, 2, 1) for t in self.topics]).values():
            created.result()
        port = free_port()
        self.config = folder / "events.toml"
        self.config.write_text(
            f"""
            [kafka]
            bootstrap_servers = "{addresses.kafka_bootstrap_servers}"
            group_id = "{PIPELINE}"
            [connect]
            url = "{addresses.connect_url}"
            [redis]
            url = "{addresses.redis_url}"
            [embedding]
            url = "{addresses.triton_grpc}"
            [telemetry]
            address = "{METRICS}"
            [temporal]
            address = "{addresses.temporal_address}"
            ui_url = "{addresses.temporal_ui_url}"
            [[sources]]
            name = "app"
            kind = "events"
            [[pipelines]]
            name = "{PIPELINE}"
            source = "app"
            topic = "{PIPELINE}"
            text = "{{text}}"
            metadata = [{{ column = "tags" }}]
            """.replace(METRICS, f"127.0.0.1:{port}")
        )
        self.port = port
        self.daemon = DaemonProcess(self.config, folder / "events.log", port).wait_ready()

    def restart(self) -> None:
        assert self.daemon.terminate() == 0
        self.daemon.close()
        self.daemon = DaemonProcess(self.config, self.folder / "events.log", self.port).wait_ready()

    def publish(self, events: list[object], *options: str) -> dict[str, object]:
        livevec = str(Path(sys.executable).parent / "livevec")
        done = subprocess.run(
            [livevec, "--config", str(self.config), "publish", PIPELINE, "--json", *options],
            input="\n".join(json.dumps(event) for event in events),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return json.loads(done.stdout)

    def texts(self) -> dict[Any, Any]:
        found = {}
        for key in self.redis.scan_iter(match=f"lv:{PIPELINE}:1:doc:*", count=1000):
            identifier, text = self.redis.hmget(key, "id", "text")
            found[identifier] = text
        return found

    def close(self) -> None:
        self.daemon.close()
        for deleted in self.admin.delete_topics(self.topics).values():
            deleted.exception()
        self.redis.execute_command("FT.DROPINDEX", f"{PIPELINE}:1", "DD")
        for key in self.redis.scan_iter(match=f"lv:*{PIPELINE}*", count=1000):
            self.redis.delete(key)


@pytest.fixture
def notes(stack: Stack, tmp_path: Path) -> Iterator[Notes]:
    notes = Notes(stack.addresses(), tmp_path)
    try:
        yield notes
    finally:
        notes.close()


def test_events_are_indexed_replaced_and_deleted_by_their_id(notes: Notes) -> None:
    published = notes.publish([{"id": n, "text": f"note {n}", "tags": ["a,b", "c"]} for n in range(200)])
    assert published["published"] == 200
    wait_until(lambda: len(notes.texts()) == 200)
    notes.publish([{"id": 7, "text": "another text", "tags": None}])
    wait_until(lambda: notes.texts()["7"] == "another text")
    notes.publish([{"id": 8}], "--delete")
    wait_until(lambda: "8" not in notes.texts())
    # A list is several tags, and a comma is part of one.
    found = notes.redis.ft(PIPELINE).search("@tags:{a\\,b} @id:{9}")
    assert (found.get("total_results") if isinstance(found, dict) else found.total) == 1
    notes.publish([{"id": 9, "tags": []}])
    wait_until(lambda: notes.daemon.outcomes().get("dead_lettered") == 1)
    assert notes.texts()["9"] == "note 9"


def test_a_topic_with_more_partitions_than_before_stops_the_pipeline(notes: Notes) -> None:
    notes.publish([{"id": 1, "text": "one", "tags": []}])
    wait_until(lambda: notes.texts() == {"1": "one"})
    wait_until(lambda: notes.redis.get(f"lv:{PIPELINE}:partitions") == "2")
    for grown in notes.admin.create_partitions([NewPartitions(PIPELINE, 3)]).values():
        grown.result()
    notes.restart()
    stopped = wait_until(lambda: notes.daemon.get("/status.json")["stopped_pipelines"])
    assert "3 partitions, it had 2" in stopped[PIPELINE]

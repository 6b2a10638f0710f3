"""Faults of the network before Redis, Triton and Kafka, and a frozen broker: nothing is lost, and it ends by itself."""

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from redis import Redis

from deploy.local.stack import Stack
from tests.chaos.random_load import random_load
from tests.support.mirrored_table import DaemonProcess, MirroredTable, wait_until
from tests.support.ports import free_port
from tests.support.proxied_kafka import proxied_kafka
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

FAULTS = ("latency", "reset", "silent", "bandwidth")


def inject(proxy: TcpProxy, fault: str) -> None:
    match fault:
        case "latency":
            proxy.latency_s = 0.15
        case "reset":
            proxy.reset()
        case "silent":
            proxy.silent = True
        case "bandwidth":
            proxy.bytes_per_s = 200_000


@pytest.mark.parametrize("part", ["redis", "triton"])
def test_a_faulty_network_before_a_part_loses_nothing(stack: Stack, tmp_path: Path, part: str) -> None:
    table = MirroredTable(stack, tmp_path, partitions=2)
    addresses = stack.addresses()
    address = addresses.redis_url.split("//")[1].split("/")[0] if part == "redis" else addresses.triton_grpc
    try:
        with tcp_proxy(address) as proxy:
            text = table.config_path.read_text().replace(address, f"127.0.0.1:{proxy.port}")
            text = text.replace("[redis]", "[redis]\n            timeout_s = 2.0")
            table.config_path.write_text(
                text.replace("[embedding]", "[embedding]\n            timeout_s = 2.0")
            )
            table.connect()
            with table.daemon() as daemon, random_load(table, truncates=False) as load:
                for fault in FAULTS:
                    inject(proxy, fault)
                    before = load.statements
                    wait_until(lambda before=before: load.statements > before + 250)  # type: ignore[misc]
                    proxy.heal()
                load.stop()
                table.wait_equal(120)
                assert daemon.process.poll() is None
    finally:
        table.close()


def test_a_broker_that_freezes_and_wakes_loses_nothing(stack: Stack, tmp_path: Path) -> None:
    table = MirroredTable(stack, tmp_path, partitions=2)
    try:
        table.connect()
        with table.daemon() as daemon, random_load(table, truncates=False) as load:
            wait_until(lambda: load.statements > 100)
            os.kill(stack.pid("kafka"), signal.SIGSTOP)
            try:
                time.sleep(8)  # longer than the daemon's session; a frozen broker cannot be asked
            finally:
                os.kill(stack.pid("kafka"), signal.SIGCONT)
            load.stop()
            table.wait_equal(120)
            assert daemon.process.poll() is None
    finally:
        table.close()


def test_a_faulty_network_before_kafka_loses_nothing(stack: Stack, tmp_path: Path) -> None:
    name = f"net{uuid.uuid4().hex[:8]}"
    addresses = stack.addresses()
    with proxied_kafka(tmp_path) as kafka:
        admin = AdminClient({"bootstrap.servers": kafka.direct})
        topics = [NewTopic(name, 2, 1), NewTopic(f"{name}.livevec.dead_letters", 1, 1)]
        for created in admin.create_topics(topics).values():
            created.result()
        port = free_port()
        config = tmp_path / "network.toml"
        config.write_text(
            f"""
            kafka = {{ bootstrap_servers = "{kafka.faulty}", group_id = "{name}", session_timeout_ms = 6000 }}
            connect = {{ url = "{addresses.connect_url}" }}
            redis = {{ url = "{addresses.redis_url}" }}
            embedding = {{ url = "{addresses.triton_grpc}" }}
            telemetry = {{ address = "127.0.0.1:{port}", log_format = "json" }}
            temporal = {{ address = "{addresses.temporal_address}", ui_url = "{addresses.temporal_ui_url}" }}
            sources = [{{ name = "app", kind = "events" }}]
            [[pipelines]]
            name = "{name}"
            source = "app"
            topic = "{name}"
            text = "{{text}}"
            """
        )
        producer = Producer({"bootstrap.servers": kafka.direct})
        expected: dict[str, str] = {}
        redis: Any = Redis.from_url(addresses.redis_url, decode_responses=True)
        daemon = DaemonProcess(config, tmp_path / "network.log", port).wait_ready()
        try:
            for number, fault in enumerate(FAULTS):
                inject(kafka.proxy, fault)
                for step in range(100):
                    identifier, text = str(step % 40), f"{fault} {step}"
                    producer.produce(name, json.dumps({"text": text}), identifier)
                    expected[identifier] = text
                    producer.poll(0.02)
                # Half-open connections are found out by the session's time-out, not before.
                time.sleep(8 if fault == "silent" else 1 + number % 2)
                kafka.proxy.heal()
            producer.flush(30)

            def texts() -> dict[str, str]:
                keys = list(redis.scan_iter(match=f"lv:{name}:1:doc:*", count=1000))
                return dict(redis.hmget(key, "id", "text") for key in keys)

            wait_until(lambda: texts() == expected, 90, "the index holds the last event of each id")
            assert daemon.process.poll() is None
        finally:
            daemon.close()
            redis.execute_command("FT.DROPINDEX", f"{name}:1", "DD")
            for key in redis.scan_iter(match=f"lv:*{name}*", count=1000):
                redis.delete(key)

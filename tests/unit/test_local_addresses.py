""" "local" is the embedded stack's address, or, of what this process listens on, a port of its own."""

import json
from pathlib import Path

import pytest

from daemon.config import parse, resolve_local
from daemon.errors import ConfigError

SERVERS = {
    "kafka": {"bootstrap_servers": "kafka:9092"},
    "connect": {"url": "http://connect:8083"},
    "redis": {"url": "redis://redis:6379/0"},
    "embedding": {"url": "triton:8001"},
    "temporal": {"address": "temporal:7233", "ui_url": "http://temporal:8080"},
}


def test_where_all_servers_are_named_no_embedded_stack_is_needed(tmp_path: Path) -> None:
    found = resolve_local(parse(SERVERS), tmp_path)
    worker = found.temporal.worker
    addresses = found.telemetry.address, worker.metrics_address, worker.sdk_metrics_address
    assert addresses == ("127.0.0.1:9464", "127.0.0.1:9465", "127.0.0.1:9466")


@pytest.mark.parametrize("server", sorted(SERVERS))
def test_a_server_that_is_not_named_needs_the_embedded_stack(server: str, tmp_path: Path) -> None:
    named = {name: settings for name, settings in SERVERS.items() if name != server}
    with pytest.raises(ConfigError, match="livevec up"):
        resolve_local(parse(named), tmp_path)


def test_beside_an_embedded_stack_its_ports_are_listened_on(tmp_path: Path) -> None:
    urls = ("metrics_url", "worker_metrics_url", "worker_sdk_metrics_url")
    addresses = {name: f"http://127.0.0.1:{port}/metrics" for port, name in enumerate(urls, 1)}
    (tmp_path / "addresses.json").write_text(json.dumps(addresses))
    found = resolve_local(parse(SERVERS), tmp_path)
    assert (found.telemetry.address, found.temporal.worker.metrics_address) == ("127.0.0.1:1", "127.0.0.1:2")

"""`livevec bench throughput` and `bench skip` on the real stack: what they report, and that nothing of them stays."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from redis import Redis

from deploy.local.stack import Stack

REFERENCE = Path(__file__).parents[2] / "daemon.toml"
ROWS = 300


def bench(stack: Stack, folder: Path, *arguments: object) -> Any:
    home = Path(stack.status()[0].log).parents[1]
    command = [Path(sys.executable).parent / "livevec", "--config", REFERENCE, "bench", *arguments, "--json"]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "LIVEVEC_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "measure" in done.stderr, "progress goes to standard error"
    return json.loads(done.stdout)


def test_both_report_every_row_and_remove_all_that_they_made(stack: Stack, tmp_path: Path) -> None:
    found = bench(stack, tmp_path, "throughput", "--rows", ROWS, "--tokens", 20)
    assert (found.pop("rows"), found.pop("tokens")) == (ROWS, 20)
    assert found.keys() == {
        *("texts_per_s", "floor_texts_per_s", "ceiling_texts_per_s", "ratio", "floor_ratio"),
        "daemon_cpu_ms_per_change",
    }
    assert all(value > 0 for value in found.values()), found
    ours = found["texts_per_s"]
    assert found["ratio"] == pytest.approx(ours / found["ceiling_texts_per_s"], abs=0.01)
    assert found["floor_ratio"] == pytest.approx(ours / found["floor_texts_per_s"], abs=0.01)

    found = bench(stack, tmp_path, "skip", "--rows", ROWS)
    assert found.pop("rows") == ROWS
    assert found.pop("guard_us_per_write") != 0, "it may be below zero on a busy machine"
    assert found.keys() == {"changes_per_s", "daemon_cpu_ms_per_change", "changes_per_s_per_core"}
    assert all(value > 0 for value in found.values()), found
    cpu_s = found["daemon_cpu_ms_per_change"] / 1000
    assert found["changes_per_s_per_core"] * cpu_s == pytest.approx(1, rel=0.01)

    addresses = stack.addresses()
    with psycopg.connect(addresses.postgres_dsn) as connection:
        for query in ("select relname from pg_class", "select slot_name from pg_replication_slots"):
            assert not [name for (name,) in connection.execute(query.encode()) if "livevec_bench" in name]
    admin = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers})
    assert not [name for name in admin.list_topics(timeout=10).topics if "livevec_bench" in name]
    with Redis.from_url(addresses.redis_url) as redis:
        assert list(redis.scan_iter("*livevec_bench*", count=1000)) == []

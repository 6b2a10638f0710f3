"""`livevec bench` and `python -m tests.bench` on the real stack: what each reports, and that nothing of it stays."""

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

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "daemon.toml"
PRODUCT = (Path(sys.executable).parent / "livevec", "--config", REFERENCE, "bench")
PROJECT = (sys.executable, "-m", "tests.bench", "--config", REFERENCE)
ROWS = 300


def bench(stack: Stack, folder: Path, program: tuple[object, ...], *arguments: object) -> Any:
    """What the measurement reports; it is written to result.json in the folder too."""
    done = run(stack, folder, *program, *arguments, "--json")
    assert "measure" in done.stderr, "progress goes to standard error"
    (folder / "result.json").write_text(done.stdout)
    return json.loads(done.stdout)


def draw(stack: Stack, folder: Path, name: str) -> Path:
    """The plot of the latest measurement in the folder."""
    run(stack, folder, *PROJECT, "plot", "result.json", name)
    return folder / name


def run(stack: Stack, folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    home = Path(stack.status()[0].log).parents[1]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "LIVEVEC_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_throughput_and_skip_report_every_row_and_remove_all_that_they_made(
    stack: Stack, tmp_path: Path
) -> None:
    found = bench(stack, tmp_path, PRODUCT, "throughput", "--rows", ROWS, "--tokens", 20)
    assert (found.pop("rows"), found.pop("tokens")) == (ROWS, 20)
    assert found.keys() == {
        *("texts_per_s", "floor_texts_per_s", "ceiling_texts_per_s", "ratio", "floor_ratio"),
        "daemon_cpu_ms_per_change",
    }
    assert all(value > 0 for value in found.values()), found
    ours = found["texts_per_s"]
    assert found["ratio"] == pytest.approx(ours / found["ceiling_texts_per_s"], abs=0.01)
    assert found["floor_ratio"] == pytest.approx(ours / found["floor_texts_per_s"], abs=0.01)

    found = bench(stack, tmp_path, PROJECT, "skip", "--rows", ROWS)
    assert found.pop("rows") == ROWS
    assert found.pop("guard_us_per_write") != 0, "it may be below zero on a busy machine"
    assert found.keys() == {"changes_per_s", "daemon_cpu_ms_per_change", "changes_per_s_per_core"}
    assert all(value > 0 for value in found.values()), found
    cpu_s = found["daemon_cpu_ms_per_change"] / 1000
    assert found["changes_per_s_per_core"] * cpu_s == pytest.approx(1, rel=0.01)
    assert_nothing_stays(stack)


def test_latency_at_several_rates_can_be_drawn(stack: Stack, tmp_path: Path) -> None:
    found = bench(stack, tmp_path, PRODUCT, "latency", "--rate", 50, "--rate", 100, "--rows", 100)
    first, second = found["rates"]
    assert (first["rate"], second["rate"]) == (50, 100)
    assert first["livevec_ms"]["count"] == second["livevec_ms"]["count"] == 80
    assert "rows/s" in draw(stack, tmp_path, "latency.svg").read_text()


def test_policies_reports_each_against_the_same_arrivals(stack: Stack, tmp_path: Path) -> None:
    plot = tmp_path / "policies.svg"
    arguments = ("--seconds", 4, "--slow-s", 1, "--slow-factor", 4, "--rate", 40, "--plot", plot)
    found = bench(stack, tmp_path, PROJECT, "policies", *arguments)
    assert (found["slow_factor"], found["slow_s"]) == (4, 1)
    for policy in ("fixed", "aimd", "deadline"):
        one = found[policy]
        assert {"over_target", "over_target_ms_sum", "p99_ms", "recovery_s", "lost"} <= one.keys()
        assert (one["rows"], one["searchable"], one["lost"]) == (160, 160, 0)
        assert 0 < one["batches"] <= 160
        assert 0 < one["slow_ms"]["count"] < 160
    assert "deadline: commit to searchable" in plot.read_text()
    assert draw(stack, tmp_path, "again.svg").read_text().count("batch size") == plot.read_text().count(
        "batch size"
    )
    assert_nothing_stays(stack)


def test_soak_loses_nothing_and_shows_memory_over_time(stack: Stack, tmp_path: Path) -> None:
    plot = tmp_path / "soak.png"
    found = bench(stack, tmp_path, PROJECT, "soak", "--minutes", 0.1, "--rate", 40, "--plot", plot)
    assert found["lost"] == 0
    assert found["inserts"] + found["updates"] + found["deletes"] == 240
    assert min(found["inserts"], found["updates"], found["deletes"]) > 0
    assert sum(window["count"] for window in found["windows"]) == found["live_ms"]["count"] > 0
    assert all(window["rss_mb"] > 20 for window in found["windows"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_lag_fills_the_topic_while_no_daemon_runs_and_watches_one_catch_up(
    stack: Stack, tmp_path: Path
) -> None:
    found = bench(stack, tmp_path, PROJECT, "lag", "--changes", 300, "--seconds", 60)
    assert (found["changes"], found["done"] >= 300) == (300, True)
    assert 20 < found["rss_mb_first"] <= found["rss_mb_max"]
    assert found["queue_changes_max"] <= 302
    assert_nothing_stays(stack)


def test_mixed_measures_a_backfill_beside_live_changes(stack: Stack, tmp_path: Path) -> None:
    found = bench(stack, tmp_path, PROJECT, "mixed", "--rows", 500, "--rate", 20)
    assert (found["rows"], found["live_rate"]) == (500, 20)
    assert found["live_alone_ms"]["count"] > 0
    assert found["backfill_alone_texts_per_s"] > 0
    assert "during a backfill" in draw(stack, tmp_path, "mixed.svg").read_text()
    assert_nothing_stays(stack)


def assert_nothing_stays(stack: Stack) -> None:
    addresses = stack.addresses()
    with psycopg.connect(addresses.postgres_dsn) as connection:
        for query in ("select relname from pg_class", "select slot_name from pg_replication_slots"):
            assert not [name for (name,) in connection.execute(query.encode()) if "livevec_bench" in name]
    admin = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers})
    assert not [name for name in admin.list_topics(timeout=10).topics if "livevec_bench" in name]
    with Redis.from_url(addresses.redis_url) as redis:
        assert list(redis.scan_iter("*livevec_bench*", count=1000)) == []

"""`livevec backfill`, `livevec workflows` and `livevec worker`, as a person uses them."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.mirrored_table import MirroredTable
from tests.support.ports import free_port
from tests.workflows.backfills import Backfills, insert

ROWS = 300


def backfill(table: MirroredTable, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return table.command("backfill", table.name, *arguments)


def flows(table: MirroredTable, *arguments: str, status: int = 0) -> Any:
    done = table.command("workflows", *arguments, "--json")
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
def rows(empty: MirroredTable) -> MirroredTable:
    insert(empty, 1, ROWS)
    empty.wait_equal()
    return empty


def test_it_is_followed_to_its_end(rows: MirroredTable) -> None:
    done = backfill(rows, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["workflow_id"] == f"backfill-{rows.name}"
    assert found["result"]["outcomes"] == {"unchanged": ROWS}
    assert found["ui"].startswith(f"{rows.addresses.temporal_ui_url}/namespaces/livevec/workflows/backfill-")


def test_a_failed_one_tells_why_and_exits_with_1(rows: MirroredTable) -> None:
    done = backfill(rows, "--wait", "--where", "no_such_column = 1")
    assert done.returncode == 1
    assert "no_such_column" in done.stderr
    assert "Traceback" not in done.stderr
    shown = flows(rows, "show", f"backfill-{rows.name}")
    assert (shown["status"], "no_such_column" in shown["failure"]) == ("failed", True)


async def test_one_in_the_background_is_listed_held_and_cancelled(rows: MirroredTable) -> None:
    name = f"backfill-{rows.name}"
    backfills = await Backfills.of(rows)
    handle = backfills.client.get_workflow_handle(name)
    started = backfill(rows, "--rate", "1")
    assert started.returncode == 0
    assert name in started.stdout
    assert f"{rows.addresses.temporal_ui_url}/namespaces/livevec/workflows/{name}/" in started.stdout
    again = backfill(rows)
    assert (again.returncode, "runs already" in again.stderr) == (1, True)

    def listed() -> Any:
        return next(one for one in flows(rows)["workflows"] if one["pipeline"] == rows.name)

    await backfills.phase(handle, "copying")
    found = listed()
    assert (found["type"], found["status"], found["table"]) == ("Backfill", "running", f"public.{rows.name}")
    assert name in rows.command("workflows").stdout
    assert flows(rows, "pause", name)["progress"]["phase"] == "paused"
    assert "paused already" in flows(rows, "pause", name, status=1)
    assert flows(rows, "throttle", name, "2")["progress"]["phase"] == "paused"
    assert flows(rows, "resume", name)["progress"]["phase"] == "copying"
    flows(rows, "cancel", name)
    await backfills.status(handle, "CANCELED")
    assert all(one["workflow_id"] != name for one in flows(rows)["workflows"])
    assert any(one["workflow_id"] == name for one in flows(rows, "--all")["workflows"])
    assert "no workflow" in flows(rows, "pause", name, status=1)


async def test_ctrl_c_while_following_leaves_it_running_and_says_how_to_go_on(rows: MirroredTable) -> None:
    backfills = await Backfills.of(rows)
    livevec = Path(sys.executable).parent / "livevec"
    following = subprocess.Popen(  # noqa: ASYNC220 - it is talked to by signals alone
        [livevec, "--config", rows.config_path, "backfill", rows.name, "--rate", "1", "--wait"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        name = f"backfill-{rows.name}"
        await backfills.phase(backfills.client.get_workflow_handle(name), "copying")
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=60)
    finally:
        following.kill()
    assert following.returncode == 130
    assert f"livevec workflows follow {name}" in said
    assert "Traceback" not in said
    assert flows(rows, "throttle", name, "0")["status"] in ("running", "completed")
    done = rows.command("workflows", "follow", name)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == ROWS


def test_metrics_of_the_worker_and_of_its_sdk(rows: MirroredTable) -> None:
    worker = rows.running_worker
    assert worker is not None
    assert backfill(rows, "--wait").returncode == 0
    assert worker.outcomes()["unchanged"] >= ROWS
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.sdk_metrics_port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    assert "temporal_workflow_completed_total{" in text
    assert "temporal_activity_execution_latency_seconds_bucket" in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("{address}", "127.0.0.1:{port}"), "cannot be reached"),
        (('task_queue = "', 'namespace = "elsewhere"\ntask_queue = "'), "no namespace 'elsewhere'"),
    ],
)
def test_without_temporal_it_says_what_to_do(
    rows: MirroredTable, tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    before, after = (
        part.format(address=rows.addresses.temporal_address, port=free_port()) for part in change
    )
    config = tmp_path / "away.toml"
    config.write_text(rows.config_path.read_text().replace(before, after))
    command = [str(Path(sys.executable).parent / "livevec"), "--config", str(config), "workflows"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr

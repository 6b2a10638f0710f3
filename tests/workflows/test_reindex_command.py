"""`livevec reindex` from the command line, with daemons and workers that come and go."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, wait_until
from tests.workflows.reindexes import insert_words

ROWS = 60


@pytest.fixture
def table(stack: Stack, tmp_path: Path) -> Iterator[MirroredTable]:
    """Mirrored by a daemon that has ended; no worker runs."""
    made = MirroredTable(stack, tmp_path, settings="[reindex]\nlast_readers_s = 0.2\nqueries = 10")
    try:
        made.connect()
        insert_words(made, 1, ROWS)
        with made.daemon() as daemon:
            made.wait_equal()
            assert daemon.terminate() == 0
        yield made
    finally:
        made.close()


def answer(table: MirroredTable, *arguments: str) -> Any:
    """What `livevec reindex .. --json` prints."""
    done = table.command("reindex", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def reached(table: MirroredTable, phase: str) -> Any:
    def look() -> Any:
        found = answer(table, "status", table.name)
        return found if (found["reindex"] or {}).get("phase") == phase else None

    return wait_until(look, 90, phase)


def test_it_waits_for_the_daemons_outlives_its_worker_and_goes_back(table: MirroredTable) -> None:
    same = table.command("reindex", table.name)
    assert (same.returncode, "nothing would differ" in same.stderr) == (2, True)
    nothing = table.command("reindex", "approve", table.name)
    assert (nothing.returncode, "no reindex" in nothing.stderr) == (1, True)

    worker = table.start_worker().wait_ready()
    started = answer(table, "--m", "20", table.name)
    assert started["workflow_id"] == f"reindex-{table.name}"
    found = reached(table, "waiting for the daemons")
    wait_until(lambda: answer(table, "status", table.name)["reindex"]["waiting_for"] == [f"{table.topic}/0"])
    assert {one["number"]: one["state"] for one in found["versions"]} == {1: "searched", 2: "beside it"}
    worker.kill()
    with table.worker(), table.daemon():
        found = reached(table, "waiting for approval")
        assert found["gate_failures"] == []
        gate = found["reindex"]["gate"]
        assert (gate["rows"], gate["differences"]) == (ROWS, {})
        assert gate["quality"]["overlap"] > 0.9
        shown = table.command("reindex", "status", table.name)
        query = gate["quality"]["answers"][0]["query"]
        (title, body) = table.db.execute(
            f"select title, body from {table.name} where id = {query}"
        ).fetchone()  # type: ignore[misc]
        assert f"{query}: {title}: {body}" in shown.stdout
        assert "60 rows compared with 60 documents" in shown.stdout

        found = answer(table, "approve", table.name)
        assert (found["active"], found["reindex"]["phase"]) == (2, "grace period")
        assert found["daemon_toml"][-1].startswith("index = { m = 20,")
        found = answer(table, "rollback", table.name)
        assert found["active"] == 1
        assert found["daemon_toml"] == []
        reached(table, "ended")
        assert [one["number"] for one in answer(table, "status", table.name)["versions"]] == [1]
        late = table.command("reindex", "rollback", table.name)
        assert late.returncode == 1


def test_what_daemon_toml_asks_for_is_made_and_followed_to_the_swap(table: MirroredTable) -> None:
    text = table.config_path.read_text().replace('text = "{title}: {body}"', 'text = "{body}"')
    assert text != table.config_path.read_text()
    table.config_path.write_text(text)
    with table.worker(), table.daemon():
        done = table.command("reindex", table.name, "--auto", "--wait", "--grace", "0")
        assert done.returncode == 0, done.stderr
        found = reached(table, "ended")
        assert found["daemon_toml"] == []
        assert [(one["number"], one["text"]) for one in found["versions"]] == [(2, "{body}")]

"""Every command against the real stack: what it prints, its exit status, and that its errors say what to do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from redis import Redis

from daemon.cli.app import COMMANDS, load
from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, wait_until
from tests.support.ports import free_port

REFERENCE = Path(__file__).parents[2] / "daemon.toml"
STAGES = {"capture", "transit", "queue", "embed", "upsert"}


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out, self.err
        return json.loads(self.out)


@dataclass(frozen=True)
class Livevec:
    """The command, in a folder of its own, with the home of a stack."""

    home: Path
    folder: Path

    def __call__(self, *arguments: object, config: Path | None = None, timeout_s: float = 120) -> Ended:
        done = subprocess.run(
            self.command(*arguments, config=config),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def command(self, *arguments: object, config: Path | None = None) -> list[str]:
        named = ["--config", str(config)] if config else []
        return [str(Path(sys.executable).parent / "livevec"), *named, *map(str, arguments)]

    @property
    def environment(self) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if name != "LIVEVEC_CONFIG"}
        return {**given, "LIVEVEC_HOME": str(self.home)}


@pytest.fixture
def livevec(stack: Stack, tmp_path: Path) -> Livevec:
    return Livevec(Path(stack.status()[0].log).parents[1], tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> Livevec:
    """No stack in its home."""
    return Livevec(tmp_path / "home", tmp_path)


@pytest.fixture
def bare(mirrored_alone: MirroredTable) -> MirroredTable:
    """A table with neither publication nor topics: `apply` is to make them."""
    table = mirrored_alone
    table.db.execute(f"drop publication {table.source.publication_name}")
    admin = AdminClient({"bootstrap.servers": table.addresses.kafka_bootstrap_servers})
    names = [table.topic, f"__debezium-heartbeat.{table.name}", table.dead_letter_topic]
    for deleted in admin.delete_topics(names, operation_timeout=30).values():
        deleted.result()
    return table


def part(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in report["parts"] if one["name"].startswith(name))
    return found


# ---- without a stack


def test_the_command_starts_without_importing_what_only_some_commands_need() -> None:
    heavy = "psycopg confluent_kafka redis pydantic numpy grpc temporalio tokenizers daemon.live connectors deploy"
    code = f"import daemon.cli.app, sys; print(*[name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_of_each_what_it_says_of_itself(name: str) -> None:
    assert load(name).help.partition("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def test_a_typo_in_the_configuration_is_named_with_the_nearest_key(alone: Livevec) -> None:
    config = alone.folder / "daemon.toml"
    config.write_text(REFERENCE.read_text().replace("[redis]\nurl", "[redis]\nurll"))
    for command in (("config", "check"), ("run",), ("status",), ("verify",), ("connector", "apply")):
        ended = alone(*command)
        assert ended.status == 2
        assert "redis.urll" in ended.err
        assert "did you mean 'url'?" in ended.err


def test_a_missing_stack_or_file_is_an_error_that_says_what_to_run(alone: Livevec) -> None:
    missing = alone("status")
    assert (missing.status, "--config" in missing.err) == (2, True)
    for command in (("run",), ("status",), ("search", "catalog", "x"), ("verify",), ("connector", "status")):
        ended = alone(*command, config=REFERENCE)
        assert ended.status == 2
        assert "livevec up" in ended.err


def test_config_check_and_show_answer_without_a_stack(alone: Livevec) -> None:
    assert alone("config", "check", config=REFERENCE).status == 0
    assert alone("config", "check", "--json", config=REFERENCE).json["pipelines"] == ["catalog"]
    config = alone.folder / "daemon.toml"
    config.write_text('[redis]\nurl = "redis://u:geheim@h:1/0"\n')
    for arguments in (("config", "show"), ("config", "show", "--json")):
        shown = alone(*arguments)
        assert "geheim" not in shown.out + shown.err
        assert "redis://u:**********@h:1/0" in shown.out
    assert alone("config", "docs").out.startswith("# Configuration")


def test_down_where_nothing_runs_is_no_error(alone: Livevec) -> None:
    assert alone("down", "--json").json == {"stopped": False}


def test_the_demo_refuses_servers_that_are_not_the_embedded_stack(alone: Livevec) -> None:
    config = alone.folder / "daemon.toml"
    config.write_text(
        REFERENCE.read_text().replace('[redis]\nurl = "local"', '[redis]\nurl = "redis://prod:6379"')
    )
    ended = alone("demo", "--once")
    assert ended.status == 2
    assert "redis.url" in ended.err


# ---- the stack


def test_a_second_up_attaches_and_prints_every_address(livevec: Livevec, stack: Stack) -> None:
    before = {server.name: server.pid for server in stack.status()}
    up = livevec("up", "--detach", "--json")
    assert up.status == 0
    assert up.json.keys() >= {
        *("postgres_dsn", "kafka_bootstrap_servers", "connect_url", "triton_grpc", "redis_url"),
        *("temporal_address", "temporal_ui_url", "metrics_url"),
    }
    assert up.json["postgres_dsn"] in livevec("up", "--detach").out
    assert {server.name: server.pid for server in stack.status()} == before
    shown = livevec("config", "show", "--json", config=REFERENCE).json
    assert shown["redis"]["url"] == up.json["redis_url"]


# ---- connectors


def test_a_connector_through_its_life(livevec: Livevec, bare: MirroredTable) -> None:
    def connector(*arguments: object) -> Ended:
        return livevec("connector", *arguments, config=bare.config_path)

    name = bare.name
    assert connector("status", "--json").status == 1
    assert connector("check", "--json").status == 1
    assert [one["connector"] for one in connector("apply", "--json").json["sources"]] == ["created"]
    assert [one["connector"] for one in connector("apply", name, "--json").json["sources"]] == ["unchanged"]
    assert connector("check", "--json").json["ok"] is True
    status = connector("status", "--json")
    assert (status.status, status.json["sources"][0]["streaming"]) == (0, True)

    def state() -> tuple[int, str]:
        shown = connector("status", name, "--json")
        return shown.status, shown.json["sources"][0]["state"]

    assert connector("pause", name).status == 0
    wait_until(lambda: state() == (1, "PAUSED"))
    assert connector("resume", name).status == 0
    wait_until(lambda: state() == (0, "RUNNING"))
    assert connector("restart", name).status == 0
    wait_until(lambda: state() == (0, "RUNNING"))

    unknown = connector("pause", "nobody")
    assert (unknown.status, name in unknown.err) == (2, True)
    deleted = connector("delete", name, "--drop-slot", "--json").json
    assert deleted == {"source": name, "deleted": True, "slot_dropped": True}
    slots = bare.db.execute("select slot_name from pg_replication_slots").fetchall()
    assert (bare.source.slot_name,) not in slots
    assert connector("delete", name, "--json").json["deleted"] is False


def test_apply_makes_publication_and_topics_and_refuses_a_table_that_cannot_be_mirrored(
    livevec: Livevec, bare: MirroredTable
) -> None:
    bare.db.execute(f"alter table {bare.name} drop constraint {bare.name}_pkey")
    refused = livevec("connector", "apply", config=bare.config_path)
    assert refused.status == 1
    assert "ADD PRIMARY KEY" in refused.err
    check = livevec("connector", "check", "--json", config=bare.config_path)
    assert (check.status, check.json["ok"]) == (1, False)
    wrong = [one for one in check.json["sources"][bare.name] if not one["ok"]]
    assert wrong
    assert all(one["remedy"] for one in wrong)

    bare.db.execute(f"alter table {bare.name} add primary key (id)")
    applied = livevec("connector", "apply", "--json", config=bare.config_path).json["sources"][0]
    assert applied["connector"] == "created"
    assert livevec("connector", "check", config=bare.config_path).status == 0
    again = livevec("connector", "apply", "--json", config=bare.config_path).json["sources"][0]
    assert (again["connector"], again["prepared"]) == ("unchanged", [])


# ---- run, search, status


def test_run_names_a_column_that_the_table_does_not_have(livevec: Livevec, mirrored: MirroredTable) -> None:
    config = livevec.folder / "wrong.toml"
    text = mirrored.config_path.read_text().replace("{title}", "{titel}")
    config.write_text(re.sub(r'address = "127.0.0.1:9"', f'address = "127.0.0.1:{free_port()}"', text))
    ended = livevec("run", config=config)
    assert ended.status == 2
    assert "titel" in ended.err
    assert "title" in ended.err


def test_search_and_status_of_a_running_daemon(livevec: Livevec, mirrored: MirroredTable) -> None:
    rows = [
        (1, "cat", "a small domesticated feline that purrs", "animal", 3),
        (2, "bank", "an institution that lends money", "finance", 5),
        (3, "tiger", "a large striped feline [of] Asia", "animal", 9),
    ]
    mirrored.connect()
    with mirrored.daemon():
        for row in rows:
            mirrored.execute("insert into $T values (%s, %s, %s, %s, %s)", *row)
        mirrored.wait_equal()
        config = mirrored.folder / "daemon-0.toml"

        def search(*arguments: object) -> Ended:
            return livevec("search", mirrored.name, *arguments, config=config)

        found = search("pets that meow", "-k", 2, "--json").json
        assert [hit["id"] for hit in found["hits"]] == ["1", "3"]
        assert found["hits"][0]["text"] == "cat: a small domesticated feline that purrs"
        assert found["hits"][0]["fields"] == {"category": "animal", "price": "3.00"}
        assert 0 <= found["hits"][0]["distance"] < found["hits"][1]["distance"]
        filtered = search("pets that meow", "--filter", "@category:{finance}", "--json").json
        assert [hit["id"] for hit in filtered["hits"]] == ["2"]
        assert "[of] Asia" in search("tigers", "--chunks").out
        wrong = search("x", "--filter", "@category:{")
        assert (wrong.status, "filter" in wrong.err) == (2, True)
        nearest = livevec("search", mirrored.name[:-1], "x", config=config)
        assert (nearest.status, f"did you mean '{mirrored.name}'" in nearest.err) == (2, True)

        status = livevec("status", "--json", config=config)
        report = status.json
        assert status.status == 0, [one for one in report["parts"] if not one["ok"]]
        assert report["ok"] is True
        names = {one["name"].split()[0] for one in report["parts"]}
        assert names == {
            *("kafka", "redis", "index", "embedder", "temporal", "daemon", "postgres", "connector")
        }
        assert report["indexes"][0]["documents"] == 3
        assert report["slots"][0]["active"] is True
        wait_until(lambda: _lag(livevec("status", "--json", config=config).json) == [0])
        assert report["freshness"]["commit_to_searchable_ms"]["count"] == 3
        assert report["freshness"]["stages_ms"].keys() == STAGES
        assert report["freshness"]["behind_s"].keys() == {mirrored.source.name}
        assert "every change is searchable up to" in livevec("status", config=config).out

    stopped = livevec("status", "--json", config=config)
    assert (stopped.status, stopped.json["ok"]) == (1, False)
    assert [one["name"] for one in stopped.json["parts"] if not one["ok"]] == ["daemon"]
    assert "livevec run" in part(stopped.json, "daemon")["remedy"]


def _lag(report: dict[str, Any]) -> list[int]:
    return [one["lag"] for one in report["lag"]]


def test_status_tells_every_frozen_server_and_does_not_hang(
    livevec: Livevec, mirrored: MirroredTable, stack: Stack
) -> None:
    names = {
        "redis": "redis",
        "kafka": "kafka",
        "temporal": "temporal",
        "postgres": f"postgres {mirrored.source.name}",
        "connect": f"connector {mirrored.source.name}",
        "triton": "embedder",
    }
    pids = []
    try:
        for server in names:
            pid = stack.pid(server)
            pids.append(pid)
            stack.kill(server, signal.SIGSTOP)
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                pids.append(int(child))
                os.kill(int(child), signal.SIGSTOP)
        began_s = time.monotonic()
        ended = livevec("status", "--json", config=mirrored.config_path)
        assert time.monotonic() - began_s < 20
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
    for name in names.values():
        frozen = part(ended.json, name)
        assert frozen["ok"] is False, name
        assert frozen["message"], name
        assert frozen["remedy"], name


# ---- demo and bench


@pytest.fixture
def clean_catalog(livevec: Livevec, stack: Stack) -> Iterator[None]:
    yield
    livevec("connector", "delete", "shop", "--drop-slot", config=REFERENCE)
    with psycopg.connect(stack.addresses().postgres_dsn, autocommit=True) as connection:
        connection.execute("drop table if exists catalog")


@pytest.mark.usefixtures("clean_catalog")
def test_the_demo_mirrors_edits_finds_and_leaves_nothing_running(livevec: Livevec, stack: Stack) -> None:
    ended = livevec("demo", "--once", "--json", "--rows", 400, "--seconds", 4, timeout_s=300)
    assert ended.status == 0, ended.err
    result = ended.json
    assert result["rows"] == 400
    assert result["commit_to_searchable_ms"].keys() == {"p50", "p95", "p99", "max", "count"}
    assert result["commit_to_searchable_ms"]["count"] >= 60
    assert result["stages"].keys() == STAGES
    assert any(hit["id"] == str(result["search"]["edited_id"]) for hit in result["search"]["hits"])
    assert result["seconds"]["total"] >= result["seconds"]["edits"] >= 4
    metrics_url = stack.addresses().metrics_url
    with pytest.raises(httpx.ConnectError):
        httpx.get(metrics_url)
    assert all(server.state == "running" for server in stack.status()), "the stack was up before, and stays"

    staying = subprocess.Popen(
        livevec.command("demo", "--rows", 400, "--seconds", 1),
        cwd=livevec.folder,
        env=livevec.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert staying.stderr is not None
    try:
        said = []
        for line in staying.stderr:
            said.append(line)
            if "Ctrl-C" in line:
                break
        assert httpx.get(metrics_url).status_code == 200, "".join(said)
        staying.send_signal(signal.SIGINT)
        assert staying.wait(60) == 0
    finally:
        staying.kill()
        staying.stderr.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(metrics_url)


def test_the_latency_bench_reports_both_and_removes_all_that_it_made(livevec: Livevec, stack: Stack) -> None:
    ended = livevec(
        *("bench", "latency", "--rate", 100, "--rows", 60, "--floor", "--json"),
        config=REFERENCE,
        timeout_s=300,
    )
    assert ended.status == 0, ended.err
    report = ended.json
    assert report.keys() == {"rate", "rows", "livevec_ms", "floor_ms", "ratio", "stages_ms"}
    assert (report["rate"], report["rows"]) == (100, 60)
    for found in (report["livevec_ms"], report["floor_ms"]):
        assert found.keys() == {"p50", "p95", "p99", "max", "count"}
        assert found["count"] == 48
        assert 0 < found["p50"] <= found["p95"] <= found["p99"] <= found["max"]
    assert report["ratio"]["p50"] == pytest.approx(
        report["livevec_ms"]["p50"] / report["floor_ms"]["p50"], abs=0.001
    )
    assert report["stages_ms"].keys() == STAGES

    addresses = stack.addresses()
    with psycopg.connect(addresses.postgres_dsn) as connection:
        for query in ("select relname from pg_class", "select slot_name from pg_replication_slots"):
            assert not [name for (name,) in connection.execute(query.encode()) if "livevec_bench" in name]
    topics = (
        AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers}).list_topics(timeout=10).topics
    )
    assert not [name for name in topics if "livevec_bench" in name]
    assert "livevec_bench" not in httpx.get(f"{addresses.connect_url}/connectors").json()
    with Redis.from_url(addresses.redis_url) as redis:
        assert list(redis.scan_iter("*livevec_bench*", count=1000)) == []
        assert not [name for name in redis.execute_command("FT._LIST") if b"livevec_bench" in name]

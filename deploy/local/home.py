"""The stack's folder: what lies where, and the small JSON files that processes share through it."""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from daemon.errors import StackError
from deploy.local.process import ProcessId


def default_home() -> Path:
    """$LIVEVEC_HOME, or `.livevec` below the current folder."""
    return Path(os.environ.get("LIVEVEC_HOME") or ".livevec")


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def read_json(path: Path) -> Any | None:
    """The content, or None where there is no such file or a killed writer left no JSON in it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


@dataclass(frozen=True)
class Addresses:
    """Where each server of a running stack is found; every one listens on 127.0.0.1 alone."""

    postgres_dsn: str
    kafka_bootstrap_servers: str
    connect_url: str
    triton_grpc: str
    triton_http: str
    redis_url: str
    temporal_address: str
    temporal_ui_url: str
    metrics_url: str
    worker_metrics_url: str
    worker_sdk_metrics_url: str

    @classmethod
    def of(cls, ports: Mapping[str, int]) -> Self:
        def at(name: str) -> str:
            return f"127.0.0.1:{ports[name]}"

        return cls(
            postgres_dsn=f"postgresql://postgres@{at('postgres')}/livevec",
            kafka_bootstrap_servers=at("kafka"),
            connect_url=f"http://{at('connect')}",
            triton_grpc=at("triton"),
            triton_http=f"http://{at('triton_http')}",
            redis_url=f"redis://{at('redis')}/0",
            temporal_address=at("temporal"),
            temporal_ui_url=f"http://{at('temporal_ui')}",
            metrics_url=f"http://{at('metrics')}/metrics",
            worker_metrics_url=f"http://{at('worker_metrics')}/metrics",
            worker_sdk_metrics_url=f"http://{at('worker_sdk_metrics')}/metrics",
        )


@dataclass(frozen=True)
class ServerState:
    """One server as the supervisor last saw it."""

    name: str
    process: ProcessId | None
    state: str
    restarts: int
    address: str
    log: str


@dataclass(frozen=True)
class StackState:
    """The stack as its supervisor last saw it; `phase`: starting, ready, stopping, stopped, failed.

    `revision` counts what this supervisor wrote.
    """

    supervisor: ProcessId
    revision: int
    phase: str
    message: str
    servers: tuple[ServerState, ...]

    def server(self, name: str) -> ServerState | None:
        return next((server for server in self.servers if server.name == name), None)


@dataclass(frozen=True)
class Home:
    """Paths below one stack's folder. `path` is absolute."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def config(self) -> Path:
        return self.path / "config"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def lock(self) -> Path:
        return self.path / "supervisor.lock"

    @property
    def progress(self) -> Path:
        return self.path / "progress.jsonl"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisor.log"

    def log(self, server: str) -> Path:
        return self.logs / f"{server}.log"

    def create(self) -> None:
        """Makes the folders; passable for PostgreSQL's user, whatever the umask says."""
        for folder in (self.path, self.logs, self.config, self.data):
            if folder.is_dir():
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o755)
            except OSError as error:
                raise StackError(
                    f"cannot make {folder} ({error.strerror}); set LIVEVEC_HOME to a folder that you may write"
                ) from error

    def identity(self) -> str:
        """A name for this home that no other has, even one made later at the same path."""
        path = self.path / "id"
        if not path.is_file() or not path.read_text("utf-8").strip():
            write_atomically(path, uuid.uuid4().hex)
        return path.read_text("utf-8").strip()

    def addresses(self) -> Addresses | None:
        content = read_json(self.path / "addresses.json")
        return None if content is None else Addresses(**content)

    def write_addresses(self, addresses: Addresses) -> None:
        write_atomically(self.path / "addresses.json", json.dumps(asdict(addresses), indent=1) + "\n")

    def forget_addresses(self) -> None:
        (self.path / "addresses.json").unlink(missing_ok=True)

    def ports(self) -> dict[str, int]:
        return dict(read_json(self.path / "ports.json") or {})

    def write_ports(self, ports: Mapping[str, int]) -> None:
        write_atomically(self.path / "ports.json", json.dumps(dict(ports), indent=1) + "\n")

    def state(self) -> StackState | None:
        content = read_json(self.path / "state.json")
        if content is None:
            return None
        return StackState(
            supervisor=ProcessId(**content["supervisor"]),
            revision=content.get("revision", 0),
            phase=content["phase"],
            message=content["message"],
            servers=tuple(
                ServerState(**{**server, "process": server["process"] and ProcessId(**server["process"])})
                for server in content["servers"]
            ),
        )

    def write_state(self, state: StackState) -> None:
        write_atomically(self.path / "state.json", json.dumps(asdict(state), indent=1) + "\n")

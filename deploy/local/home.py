"""The folder of an embedded stack: its paths, and the small JSON files through which its processes talk."""

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from pydantic import TypeAdapter

from daemon.errors import StackError
from deploy.local.process import ProcessId


@dataclass(frozen=True)
class StepProgress:
    """News of one step of the stack, one line of the home's progress file.

    Attributes:
        done: how much of `total` is done, where both are known.
        seconds: time since the step began.
        end: the step is over, and nothing more is reported about it.
        failed: it is over because it failed; `detail` says why.
    """

    step: str
    detail: str
    done: int | None = None
    total: int | None = None
    seconds: float | None = None
    end: bool = False
    failed: bool = False


OnProgress = Callable[[StepProgress], None]


def silent(progress: StepProgress) -> None:
    """Ignore the progress, for callers that show nothing."""


@dataclass(frozen=True)
class Addresses:
    """The address of each server of a running stack; all of them listen on 127.0.0.1 only.

    The defaults say how `of` forms an address from the ports.
    """

    postgres_dsn: str = "postgresql://postgres@{postgres}/livevec"
    kafka_bootstrap_servers: str = "{kafka}"
    connect_url: str = "http://{connect}"
    triton_grpc: str = "{triton}"
    triton_http: str = "http://{triton_http}"
    redis_url: str = "redis://{redis}/0"
    temporal_address: str = "{temporal}"
    temporal_ui_url: str = "http://{temporal_ui}"
    metrics_url: str = "http://{metrics}/metrics"
    worker_metrics_url: str = "http://{worker_metrics}/metrics"
    worker_sdk_metrics_url: str = "http://{worker_sdk_metrics}/metrics"

    @classmethod
    def of(cls, ports: Mapping[str, int]) -> Self:
        places = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        return cls(*(address.format_map(places) for address in vars(cls()).values()))


@dataclass(frozen=True)
class ServerState:
    """One server as the supervisor last saw it.

    Attributes:
        process: its process, or None where it has none now.
        state: starting, running, restarting, failed (given up) or stopped.
    """

    name: str
    process: ProcessId | None
    state: str
    restarts: int
    address: str
    log: str

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None


@dataclass(frozen=True)
class StackState:
    """The stack as its supervisor last saw it.

    Attributes:
        revision: how often this supervisor has written the state.
        phase: starting, ready, stopping, stopped or failed.
    """

    supervisor: ProcessId
    revision: int
    phase: str
    message: str
    servers: tuple[ServerState, ...]

    def server(self, name: str) -> ServerState | None:
        return next((server for server in self.servers if server.name == name), None)


Content = TypeVar("Content")
_ADDRESSES = TypeAdapter(Addresses)
_PORTS = TypeAdapter(dict[str, int])
_STATE = TypeAdapter(StackState)


class Home:
    """The folder of one stack; `path` is absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.config = path / "config"
        self.data = path / "data"
        self.lock = path / "supervisor.lock"
        self.progress = path / "progress.jsonl"
        self.supervisor_log = self.logs / "supervisor.log"

    def log(self, server: str) -> Path:
        return self.logs / f"{server}.log"

    def create(self) -> None:
        """Create the folders so that PostgreSQL's user can pass through them, whatever the umask is."""
        for folder in (self.path, self.logs, self.config, self.data):
            if folder.is_dir():
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o755)
            except OSError as error:
                raise StackError(
                    f"cannot create {folder} ({error.strerror}); set LIVEVEC_HOME to a folder that you can write to"
                ) from error

    def identity(self) -> str:
        """Return a name that no other home has, not even one created later at the same path."""
        path = self.path / "id"
        if not path.is_file() or not path.read_text("utf-8").strip():
            _write_atomically(path, uuid.uuid4().hex.encode())
        return path.read_text("utf-8").strip()

    def addresses(self) -> Addresses | None:
        return self._read(_ADDRESSES, "addresses")

    def write_addresses(self, addresses: Addresses) -> None:
        self._write(_ADDRESSES, "addresses", addresses)

    def forget_addresses(self) -> None:
        (self.path / "addresses.json").unlink(missing_ok=True)

    def ports(self) -> dict[str, int]:
        return self._read(_PORTS, "ports") or {}

    def write_ports(self, ports: dict[str, int]) -> None:
        self._write(_PORTS, "ports", ports)

    def state(self) -> StackState | None:
        return self._read(_STATE, "state")

    def write_state(self, state: StackState) -> None:
        self._write(_STATE, "state", state)

    def _read(self, kind: TypeAdapter[Content], name: str) -> Content | None:
        """Return the content, or None where there is no such file, or not of this kind: its writer was killed."""
        try:
            return kind.validate_json((self.path / f"{name}.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def _write(self, kind: TypeAdapter[Content], name: str, content: Content) -> None:
        _write_atomically(self.path / f"{name}.json", kind.dump_json(content, indent=1) + b"\n")


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)

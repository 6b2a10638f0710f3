"""What every server of the stack has: its place, its command, its probe."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from string import Template
from typing import ClassVar

from daemon.errors import StackError
from deploy.local.home import Home
from deploy.local.process import SERVER_MARK, SUPERVISOR_MARK

TEMPLATES = Path(__file__).parent.parent / "templates"


class NotReady(Exception):
    """A server does not do its work yet; the message says what is missing."""


@dataclass(frozen=True)
class Artifacts:
    """The folders in the cache that a stack is made of."""

    kafka_jars: Path
    connect_plugins: Path
    triton_backends: Path
    models: Path


@dataclass(frozen=True)
class Site:
    """The place of a stack: its home, its ports, and the folders that it needs."""

    home: Home
    ports: Mapping[str, int]
    artifacts: Artifacts


@dataclass(frozen=True)
class Command:
    """How to start and stop a process.

    Attributes:
        privileges: options of setpriv, which runs before it.
        stop_signal: ends it gracefully.
        orphan_signal: what the kernel sends it when the supervisor dies; see prctl(2), PR_SET_PDEATHSIG.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    privileges: tuple[str, ...] = ()
    stop_signal: int = SIGTERM
    orphan_signal: str = "KILL"


def launch_line(command: Command) -> tuple[str, ...]:
    """Return the command behind setpriv, which sets the death signal last: a change of uid would clear it."""
    return ("setpriv", *command.privileges, "--pdeathsig", command.orphan_signal, "--", *command.argv)


class Server(ABC):
    """One server of the stack. Its methods block; the supervisor calls them in threads."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    # A start has failed when the log has not grown for so long.
    start_quiet_s_max: ClassVar[float] = 90.0
    stop_timeout_s: ClassVar[float] = 10.0

    def __init__(self, site: Site) -> None:
        self.site = site
        self.port = site.ports[self.name]
        self.data = site.home.data / self.name

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """Prepare the data folder and the configuration for a start, also after a crash."""
        self.data.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def command(self) -> Command:
        """Return the command; called after `prepare`."""

    @abstractmethod
    def probe(self) -> None:
        """Let the server do a piece of its real work; raise NotReady until it can."""

    def heal(self) -> str | None:
        """Repair what no exit status shows, and say what was done; called every few seconds while it runs."""
        return None

    def environment(self, command: Command) -> dict[str, str]:
        """Return the environment of a process of this server, with a mark by which a later stack finds the process."""
        inherited = {name: value for name, value in os.environ.items() if name != SUPERVISOR_MARK}
        # Java spells file names in the locale's encoding, which in an empty environment is ASCII.
        ours = {"LC_ALL": "C.UTF-8", SERVER_MARK: str(self.site.home.path)}
        return {**inherited, **ours, **command.environment}

    def run_tool(self, command: Command) -> subprocess.CompletedProcess[str]:
        """Run a command that prepares this server; `stdout` of the result holds both streams."""
        return subprocess.run(
            launch_line(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self.environment(command),
            cwd="/",
            check=False,
        )

    def render(self, template: str, **values: object) -> Path:
        """Fill a properties template of this package, and write it to the home's configuration folder."""
        text = (TEMPLATES / template).read_text("utf-8")
        path = self.site.home.config / template
        # A properties file is Latin-1 with the escapes of JSON's strings.
        escaped = {name: json.dumps(str(value))[1:-1] for name, value in values.items()}
        path.write_text(Template(text).substitute(escaped), "ascii")
        return path


def package_folder(module: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise StackError(f"the Python package {module} is not installed; run: pip install 'livevec[local]'")
    return Path(spec.origin).parent


def package_file(distribution: str, name: str) -> Path:
    """Return a file that a distribution installed, by the end of its path."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(os.path.normpath(file.locate()))
        if str(file).endswith(name) and path.is_file():
            return path
    raise StackError(
        f"{name} of the Python package {distribution} is missing; run: pip install 'livevec[local]'"
    )

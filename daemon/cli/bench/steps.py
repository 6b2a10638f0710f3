"""What a measurement needs beside a running stack: tables, a connector, a daemon of its own; removed at its end."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from connectors import slot
from daemon.bench.latency import Latency, OnProgress
from daemon.bench.load import LoadRow, LoadTable, rows_of
from daemon.bench.percentiles import STAGES
from daemon.bench.process import cpu_s
from daemon.cli.bench.setting import NAME, Setting, remove, write_config
from daemon.cli.child import ChildProcess, DaemonChild
from daemon.cli.connector import apply_source
from daemon.cli.console import Steps
from daemon.cli.daemon_http import Follower
from daemon.cli.stack import reporter
from daemon.config import default_home
from daemon.settings import Config
from deploy.local.artifacts import default_cache
from deploy.local.corpus import texts

_SAMPLES_HELD = 1_000


class Livevec:
    """The daemon as a measured system."""

    name = "livevec"

    def __init__(self, pipeline: str, table: LoadTable, child: DaemonChild) -> None:
        self.pipeline = pipeline
        self.table = table
        self.child = child
        self._follower = Follower(child.http, 0, _SAMPLES_HELD)

    def arrived(self) -> Sequence[Latency]:
        self.child.check()
        return [
            Latency(row["id"], row["total"], {stage: row[stage] for stage in STAGES}, row["committed_at"])
            for row in self._follower.fetch()
        ]

    def acknowledged(self) -> int:
        self.child.check()
        return int(self.child.http.status()["samples"])

    def cpu_s(self) -> float:
        return cpu_s(self.child.process.pid)


class Floor:
    """The barest loop as a measured system."""

    name = "floor"

    def __init__(self, table: LoadTable, child: ChildProcess, samples: Path) -> None:
        self.table = table
        self._child = child
        self._samples = samples
        self._read_bytes = 0

    def arrived(self) -> Sequence[Latency]:
        self._child.check()
        with self._samples.open("rb") as file:
            file.seek(self._read_bytes)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        return [
            Latency(key, float(total), {}) for key, total in map(str.split, complete.decode().splitlines())
        ]

    def acknowledged(self) -> int:
        self._child.check()
        return self._samples.read_bytes().count(b"\n")

    def cpu_s(self) -> float:
        return cpu_s(self._child.process.pid)


@dataclass(frozen=True)
class Bench:
    """What a measurement runs on. `tables`: in the order of the pipelines; `folder`: for files, removed at the end."""

    setting: Setting
    tables: tuple[LoadTable, ...]
    folder: Path


def load_rows(steps: Steps, tokens: int, count: int) -> list[LoadRow]:
    """Return rows of real sentences."""
    return rows_of((entry.body for entry in texts(default_cache(), reporter(steps))), tokens, count)


def progress(steps: Steps) -> OnProgress:
    """Return a callback that shows how far a measurement is."""
    return partial(steps.news, "measure")


@contextmanager
def prepared(config: Config, steps: Steps, names: Sequence[str] = (NAME,)) -> Iterator[Bench]:
    """Make tables, connector and topics; remove them at the end, and before it what an earlier run left behind.

    Raises:
        LivevecError: something did not start.
    """
    setting = Setting.of(config, names)
    with (
        slot.connected(setting.source) as connection,
        TemporaryDirectory(prefix="livevec-bench-", ignore_cleanup_errors=True) as folder,
    ):
        tables = tuple(LoadTable(connection, pipeline.table) for pipeline in setting.config.pipelines)
        with steps.step("clean up"):
            remove(config, connection, names)
        try:
            for table in tables:
                table.create()
            apply_source(setting.config, setting.source, steps)
            yield Bench(setting, tables, Path(folder))
        finally:
            remove(config, connection, names)


@contextmanager
def livevec_running(bench: Bench, steps: Steps, config: Config | None = None) -> Iterator[Livevec]:
    """A daemon that is ready and mirrors one table.

    Args:
        config: see `Setting.daemon`, which makes it. None: that of the first table.
    """
    config = config or bench.setting.daemon(bench.setting.config.pipelines[0])
    (pipeline,) = config.pipelines
    path = bench.folder / "daemon.toml"
    write_config(path, config)
    log = default_home() / "logs" / "bench.log"
    with DaemonChild(path, log, config.telemetry.address) as child:
        with steps.step("start the daemon"):
            child.wait_ready()
        yield Livevec(pipeline.name, bench.tables[bench.setting.config.pipelines.index(pipeline)], child)


@contextmanager
def floor_running(bench: Bench, steps: Steps) -> Iterator[Floor]:
    """The barest loop, running on the second table."""
    samples, path = bench.folder / "floor.samples", bench.folder / "floor.toml"
    write_config(path, bench.setting.daemon(bench.setting.config.pipelines[1]))
    command = [sys.executable, "-m", "daemon.bench.floor", str(path), str(samples)]
    log = default_home() / "logs" / "bench-floor.log"
    with ChildProcess(command, log, "the floor") as child:
        with steps.step("start the floor"):
            child.wait_until(samples.exists, "did not start")
        yield Floor(bench.tables[1], child, samples)

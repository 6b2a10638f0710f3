"""What `livevec bench` needs beside a running stack: tables, connector, a daemon of its own; all removed after it."""

import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from daemon.bench import slow_embedder
from daemon.bench.floor import Spec
from daemon.bench.latency import Latency, OnProgress, System
from daemon.bench.load import LoadRow, Table, rows_of
from daemon.bench.percentiles import STAGES
from daemon.bench.process import cpu_s, rss_mb
from daemon.bench.slow_embedder import SlowDown, write_slow_down
from daemon.bench.stored import differences, stored_texts
from daemon.bench.toml import to_toml
from daemon.cli.bench.removal import remove
from daemon.cli.bench.setting import AS_THE_USER, FLOOR, NAME, Setting, Tuning, free_port
from daemon.cli.child import ChildProcess, DaemonChild
from daemon.cli.connector import apply_source
from daemon.cli.console import Steps
from daemon.cli.stack import reporter
from daemon.config import default_home
from daemon.core.change import Outcome
from daemon.settings import Config
from deploy.local.artifacts import default_cache
from deploy.local.corpus import texts

SENTENCES = 20_000
"""Different texts for a measurement that makes its own rows of them."""
_SAMPLES_HELD = 1_000
_SETTLE_TIMEOUT_S = 15.0
_SETTLE_POLL_S = 0.5


class Livevec:
    """The daemon as a measured system."""

    name = "livevec"

    def __init__(self, pipeline: str, table: Table, child: DaemonChild) -> None:
        self.pipeline = pipeline
        self.table = table
        self._child = child
        self._follower = child.http.follow(0, _SAMPLES_HELD)

    def arrived(self) -> Sequence[Latency]:
        self._child.check()
        return [
            Latency(
                sample["id"],
                sample["total"],
                {stage: sample[stage] for stage in STAGES},
                sample["committed_at"],
            )
            for sample in self._follower.fetch()
        ]

    def acknowledged(self) -> int:
        self._child.check()
        return int(self._child.http.status()["samples"])

    def unchanged(self) -> int:
        self._child.check()
        return self.outcomes()[Outcome.UNCHANGED]

    def outcomes(self) -> dict[str, int]:
        """Changes so far by how they ended."""
        return self._child.http.outcomes(self.pipeline)

    def queued(self) -> int:
        """Changes that wait."""
        self._child.check()
        return int(self._child.http.gauges("livevec_queue_changes")[self.pipeline])

    def cpu_s(self) -> float:
        return cpu_s(self._child.process.pid)

    def rss_mb(self) -> float:
        return rss_mb(self._child.process.pid)


class Floor:
    """The barest loop as a measured system."""

    name = "floor"

    def __init__(self, table: Table, child: ChildProcess, samples: Path) -> None:
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
    """What a measurement runs on. `tables`: in the pipelines' order; `folder`: for files, removed at the end."""

    setting: Setting
    tables: tuple[Table, ...]
    folder: Path


def load_rows(steps: Steps, tokens: int, count: int) -> list[LoadRow]:
    """Rows of real sentences."""
    return rows_of((entry.body for entry in texts(default_cache(), reporter(steps))), tokens, count)


def progress(steps: Steps) -> OnProgress:
    """Shows how far a measurement is."""
    return lambda what, done, total: steps.news("measure", what, done, total)


def lost(config: Config, livevec: Livevec) -> int:
    """Changes of which the index does not know: it is compared with the table, again until they are equal.

    Raises:
        LivevecError: PostgreSQL or Redis refused.
    """
    ends_at = time.monotonic() + _SETTLE_TIMEOUT_S
    url = config.redis.url.get_secret_value()
    while True:
        found = differences(livevec.table.texts(), stored_texts(url, livevec.pipeline)).lost
        if not found or time.monotonic() > ends_at:
            return found
        time.sleep(_SETTLE_POLL_S)


@contextmanager
def prepared(config: Config, steps: Steps, names: Sequence[str] = (NAME,)) -> Iterator[Bench]:
    """Tables, connector and topics; everything is removed at the end, and so is a former run's rest.

    Raises:
        LivevecError: something did not start.
    """
    setting = Setting.of(config, names)
    dsn = setting.source.dsn.get_secret_value()
    with ExitStack() as cleanup:
        connection = cleanup.enter_context(psycopg.connect(dsn, autocommit=True))
        folder = Path(tempfile.mkdtemp(prefix="livevec-bench-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        tables = tuple(Table(connection, pipeline.table) for pipeline in setting.pipelines)
        with steps.step("clean up"):
            remove(config, connection)
        cleanup.callback(remove, config, connection)
        for table in tables:
            table.create()
        apply_source(setting.config, setting.source, setting.pipelines, steps)
        yield Bench(setting, tables, folder)


@contextmanager
def livevec_running(
    bench: Bench, steps: Steps, name: str = NAME, tuning: Tuning = AS_THE_USER
) -> Iterator[Livevec]:
    """A daemon on the table of that name, ready."""
    number = [pipeline.name for pipeline in bench.setting.pipelines].index(name)
    pipeline = bench.setting.pipelines[number]
    with ExitStack() as cleanup:
        with steps.step("start the daemon", tuning.policy):
            child = cleanup.enter_context(_daemon(bench.setting.daemon(pipeline, tuning), bench.folder))
        yield Livevec(name, bench.tables[number], child)


@contextmanager
def floor_running(bench: Bench, steps: Steps) -> Iterator[Floor]:
    """The barest loop on the second table."""
    samples = bench.folder / "floor.samples"
    with ExitStack() as cleanup:
        with steps.step("start the floor"):
            child = cleanup.enter_context(_floor(bench.setting, bench.folder, samples))
        yield Floor(bench.tables[1], child, samples)


class SlowEmbedder:
    """Serves `address` in a process of its own."""

    def __init__(self, address: str, schedule: Path) -> None:
        self.address = address
        self._schedule = schedule

    def slow_down(self, times: SlowDown | None) -> None:
        """When it is slow from now on; None: never."""
        write_slow_down(self._schedule, times)


@contextmanager
def slow_embedder_running(bench: Bench, steps: Steps) -> Iterator[SlowEmbedder]:
    """Before the embedder of the configuration."""
    port = free_port()
    schedule, path = bench.folder / "slow_down.json", bench.folder / "slow_embedder.json"
    spec = slow_embedder.Spec(bench.setting.config.embedding.url, f"127.0.0.1:{port}", str(schedule))
    path.write_text(spec.to_json(), "utf-8")
    command = [sys.executable, "-m", "daemon.bench.slow_embedder", str(path)]
    with ExitStack() as cleanup:
        with steps.step("start the embedder that can be slow"):
            log = default_home() / "logs" / "bench-slow-embedder.log"
            child = cleanup.enter_context(ChildProcess(command, log, "the slow embedder"))
            child.wait_until(lambda: _listens(port), "did not start")
        yield SlowEmbedder(spec.address, schedule)


@contextmanager
def running(config: Config, steps: Steps, *, floor: bool) -> Iterator[list[System]]:
    """The systems to measure side by side, set up and ready.

    Raises:
        LivevecError: something did not start.
    """
    names = (NAME, FLOOR) if floor else (NAME,)
    with prepared(config, steps, names) as bench, ExitStack() as cleanup:
        systems: list[System] = [cleanup.enter_context(livevec_running(bench, steps))]
        if floor:
            systems.append(cleanup.enter_context(floor_running(bench, steps)))
        yield systems


@contextmanager
def _daemon(config: Config, folder: Path) -> Iterator[DaemonChild]:
    path = folder / "daemon.toml"
    path.touch(mode=0o600)
    path.write_text(to_toml(config), "utf-8")
    with DaemonChild(path, default_home() / "logs" / "bench.log", config.telemetry.address) as child:
        child.wait_ready()
        yield child


@contextmanager
def _floor(setting: Setting, folder: Path, samples: Path) -> Iterator[ChildProcess]:
    config, pipeline = setting.config, setting.pipelines[1]
    spec = Spec(
        bootstrap_servers=config.kafka.bootstrap_servers,
        kafka_client=dict(config.kafka.client),
        group=FLOOR,
        topic=config.topic(pipeline),
        partitions=setting.source.topic_partitions,
        triton=config.embedding.url,
        model=config.embedding.model,
        dimension=config.embedding.dimension,
        redis_url=config.redis.url.get_secret_value(),
        index=FLOOR,
        prefix=f"{FLOOR}:",
        m=pipeline.index.m,
        ef_construction=pipeline.index.ef_construction,
        samples=str(samples),
    )
    path = folder / "floor.json"
    path.touch(mode=0o600)
    path.write_text(spec.to_json(), "utf-8")
    command = [sys.executable, "-m", "daemon.bench.floor", str(path)]
    with ChildProcess(command, default_home() / "logs" / "bench-floor.log", "the floor") as child:
        child.wait_until(samples.exists, "did not start")
        yield child


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

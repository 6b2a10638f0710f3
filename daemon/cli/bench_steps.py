"""What `livevec bench` needs beside a running stack: tables, connector, a daemon of its own; all removed after it."""

import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from connectors.connect import KafkaConnect
from connectors.topics import topics
from daemon.bench import guard
from daemon.bench.floor import Spec
from daemon.bench.latency import Latency, System
from daemon.bench.load import Table
from daemon.bench.percentiles import STAGES
from daemon.bench.process_cpu import cpu_s
from daemon.bench.toml import to_toml
from daemon.cli.child import ChildProcess, DaemonChild
from daemon.cli.connector import apply_source
from daemon.cli.console import Steps
from daemon.cli.librdkafka import quiet_log
from daemon.config import default_home
from daemon.core.change import Outcome
from daemon.errors import ConfigError, LivevecError
from daemon.settings import Config, Pipeline, PostgresSource

NAME = "livevec_bench"
FLOOR = "livevec_bench_floor"
_SAMPLES_HELD = 1_000
_ADMIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Setting:
    """The configuration of the measured daemon, its source, and the pipelines that the connector serves."""

    config: Config
    source: PostgresSource
    pipelines: tuple[Pipeline, ...]

    @classmethod
    def of(cls, config: Config, *, floor: bool) -> "Setting":
        """The user's servers and tuning, with a source and a pipeline of its own.

        Raises:
            ConfigError: the configuration names no PostgreSQL source.
        """
        known = [source for source in config.sources if isinstance(source, PostgresSource)]
        if not known:
            raise ConfigError("a measurement needs PostgreSQL: define a source with its dsn in daemon.toml")
        source = known[0].model_copy(
            update={"name": NAME, "slot": NAME, "publication": NAME, "snapshot_mode": "no_data", "era": 0}
        )
        pipelines = tuple(
            Pipeline(name=name, source=NAME, table=f"public.{name}", text="{body}")
            for name in (NAME, *([FLOOR] if floor else ()))
        )
        own = config.model_copy(
            update={
                "kafka": config.kafka.model_copy(update={"group_id": NAME}),
                "telemetry": config.telemetry.model_copy(
                    update={"address": f"127.0.0.1:{_free_port()}", "log_format": "json"}
                ),
                "sources": (source,),
                "pipelines": pipelines[:1],
            }
        )
        return cls(own, source, pipelines)


class Livevec:
    """The daemon as a measured system."""

    name = "livevec"

    def __init__(self, table: Table, child: DaemonChild) -> None:
        self.table = table
        self._child = child
        self._follower = child.http.follow(0, _SAMPLES_HELD)

    def arrived(self) -> Sequence[Latency]:
        self._child.check()
        return [
            Latency(sample["id"], sample["total"], {stage: sample[stage] for stage in STAGES})
            for sample in self._follower.fetch()
        ]

    def acknowledged(self) -> int:
        self._child.check()
        return int(self._child.http.status()["samples"])

    def unchanged(self) -> int:
        self._child.check()
        return self._child.http.outcomes(NAME)[Outcome.UNCHANGED]

    def cpu_s(self) -> float:
        return cpu_s(self._child.process.pid)


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
    """What a measurement runs on. `tables`: livevec's, then the floor's; `folder`: for files, removed at the end."""

    setting: Setting
    tables: tuple[Table, ...]
    folder: Path


@contextmanager
def prepared(config: Config, steps: Steps, *, floor: bool) -> Iterator[Bench]:
    """Tables, connector and topics; everything is removed at the end, and so is a former run's rest.

    Raises:
        LivevecError: something did not start.
    """
    setting = Setting.of(config, floor=floor)
    dsn = setting.source.dsn.get_secret_value()
    with ExitStack() as cleanup:
        connection = cleanup.enter_context(psycopg.connect(dsn, autocommit=True))
        folder = Path(tempfile.mkdtemp(prefix="livevec-bench-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        tables = tuple(Table(connection, pipeline.table) for pipeline in setting.pipelines)
        with steps.step("clean up"):
            _remove(setting, connection, tables)
        cleanup.callback(_remove, setting, connection, tables)
        for table in tables:
            table.create()
        apply_source(setting.config, setting.source, setting.pipelines, steps)
        yield Bench(setting, tables, folder)


@contextmanager
def livevec_running(bench: Bench, steps: Steps) -> Iterator[Livevec]:
    """A daemon on the first table, ready."""
    with ExitStack() as cleanup:
        with steps.step("start the daemon"):
            child = cleanup.enter_context(_daemon(bench.setting, bench.folder))
        yield Livevec(bench.tables[0], child)


@contextmanager
def floor_running(bench: Bench, steps: Steps) -> Iterator[Floor]:
    """The barest loop on the second table."""
    samples = bench.folder / "floor.samples"
    with ExitStack() as cleanup:
        with steps.step("start the floor"):
            child = cleanup.enter_context(_floor(bench.setting, bench.folder, samples))
        yield Floor(bench.tables[1], child, samples)


@contextmanager
def running(config: Config, steps: Steps, *, floor: bool) -> Iterator[list[System]]:
    """The systems to measure side by side, set up and ready.

    Raises:
        LivevecError: something did not start.
    """
    with prepared(config, steps, floor=floor) as bench, ExitStack() as cleanup:
        systems: list[System] = [cleanup.enter_context(livevec_running(bench, steps))]
        if floor:
            systems.append(cleanup.enter_context(floor_running(bench, steps)))
        yield systems


@contextmanager
def _daemon(setting: Setting, folder: Path) -> Iterator[DaemonChild]:
    path = folder / "daemon.toml"
    path.touch(mode=0o600)
    path.write_text(to_toml(setting.config), "utf-8")
    with DaemonChild(path, default_home() / "logs" / "bench.log", setting.config.telemetry.address) as child:
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


def _remove(setting: Setting, connection: "psycopg.Connection[Any]", tables: Sequence[Table]) -> None:
    """Connector, slot, publication, tables, topics, groups and keys, as far as they are there."""
    with KafkaConnect(setting.config.connect) as client:
        client.delete(setting.source, with_slot=True)
    connection.execute(f"DROP PUBLICATION IF EXISTS {NAME}")
    for table in tables:
        table.drop()
    _remove_topics(setting)
    _remove_keys(setting.config)


def _remove_topics(setting: Setting) -> None:
    """Waits until they are gone: a topic of the same name could not be made before."""
    kafka = setting.config.kafka
    admin = AdminClient({**kafka.client, "bootstrap.servers": kafka.bootstrap_servers}, logger=quiet_log())
    try:
        present = admin.list_topics(timeout=_ADMIN_TIMEOUT_S).topics
        wanted = [topic.name for topic in topics(setting.source, setting.pipelines, kafka)]
        names = [name for name in wanted if name in present]
        for deleted in (
            admin.delete_topics(names, operation_timeout=_ADMIN_TIMEOUT_S).values() if names else ()
        ):
            deleted.result()
        groups = {found.group_id for found in admin.list_consumer_groups().result().valid}
        ours = [name for name in (NAME, FLOOR) if name in groups]
        for gone in admin.delete_consumer_groups(ours).values() if ours else ():
            gone.result()
    except KafkaException as error:
        raise LivevecError(
            f"Kafka did not delete what the measurement made ({error.args[0].str()}); delete the topics named "
            f"{NAME}* by hand"
        ) from error


def _remove_keys(config: Config) -> None:
    if config.redis.cluster:
        raise ConfigError("a measurement needs a single Redis, not a cluster: set redis.cluster = false")
    with redis.Redis.from_url(config.redis.url.get_secret_value()) as client:
        for index in (f"{NAME}:1", FLOOR):
            try:
                cast(Any, client.ft(index)).dropindex(delete_documents=True)
            except redis.ResponseError:
                continue  # there is none
        guard.remove_keys(client)
        prefixes = (f"lv:{NAME}:", f"lv:positions:{NAME}:", f"lv:source:{NAME}:", f"{FLOOR}:")
        for prefix in prefixes:
            for key in client.scan_iter(match=f"{prefix}*", count=1000):
                client.unlink(key)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

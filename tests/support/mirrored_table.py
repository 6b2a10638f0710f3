"""One table with all that mirrors it (connector, topics, index, daemon processes), for one test or one module.

All tables of a session are captured by one connector, which a table joins within a second; a test that changes the
connector, its slot or its source asks for one of its own, whose task takes Debezium several seconds to start.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import psycopg
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from redis import Redis
from temporalio.client import Client

from connectors import slot
from connectors.connect import KafkaConnect
from connectors.definition import heartbeat_topic, render
from connectors.prepare import prepare
from daemon.config import load
from daemon.errors import WorkflowError
from daemon.settings import Config, PostgresSource
from deploy.local.stack import Stack
from tests.support.ports import free_port, free_ports
from workflows.client import connect

DDL = "id bigint primary key, title text, body text, category text, price numeric(10,2)"
METRICS = "127.0.0.1:9"
"""Stands in the table's configuration; each daemon gets a copy with a port of its own."""
SDK_METRICS = "127.0.0.1:10"
TEXT = "{title}: {body}"
STOP_TIMEOUT_S = 5.0
POLL_INTERVAL_MS = "20"
"""How often a connector of the tests looks for changes; each 2 ms, as in production, costs a third of a core."""
SHARED_SOURCE = "shared"
SHARED_TABLES = r"public\.t[0-9a-f]{8}"
"""The tables that the shared connector captures, those that are not there yet included: a pattern of Debezium's."""


def wait_until(condition: Callable[[], Any], deadline_s: float = 60.0, what: str = "") -> Any:
    """Poll until `condition` gives something true; answers that."""
    ends_at = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > ends_at:
            raise AssertionError(f"not within {deadline_s} s: {what or condition}")
        time.sleep(0.05)


class DaemonProcess:
    """`livevec run` as a process of its own."""

    command = "run"

    def __init__(self, config: Path, log: Path, metrics_port: int) -> None:
        self.log = log
        self._url = f"http://127.0.0.1:{metrics_port}"
        self._file = log.open("ab")
        command = [str(Path(sys.executable).parent / "livevec"), "--config", str(config), self.command]
        self.process = subprocess.Popen(command, stderr=self._file, stdout=self._file)

    def wait_ready(self) -> Self:
        wait_until(self._ready, 60, f"the daemon is ready; its log: {self.log}")
        return self

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"it ended ({self.process.returncode}):\n{self.log.read_text()[-4000:]}")
        try:
            return bool(self.get("/status.json")["assigned"])
        except OSError:
            return False

    def get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(self._url + path, timeout=5) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(self._url + "/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}

    def outcomes(self) -> dict[str, float]:
        """Counts by outcome, those that are not zero."""
        prefix = 'livevec_changes_total{outcome="'
        return {
            name[len(prefix) :].split('"')[0]: count
            for name, count in self.metrics().items()
            if name.startswith(prefix) and count
        }

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, deadline_s: float = 30.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline_s)

    def stop(self) -> None:
        """End it as an operator does; kill it when that takes long.

        What takes over from a killed one waits for time-outs, of its session with Kafka (6 s) or its queue in Temporal.
        """
        if self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.terminate(STOP_TIMEOUT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._file.close()


class WorkerProcess(DaemonProcess):
    """`livevec worker` as a process of its own."""

    command = "worker"

    def __init__(self, config: Path, log: Path, metrics_port: int, sdk_metrics_port: int) -> None:
        super().__init__(config, log, metrics_port)
        self.sdk_metrics_port = sdk_metrics_port


class MirroredTable:
    """`public.<name>` in the stack's database, mirrored by the pipeline `<name>`.

    Args:
        own_connector: have a source, a connector and a slot named like the table, which `connect` creates and
            `close` removes. Otherwise the changes of a table reach its topic from the moment it is created.
    """

    def __init__(
        self,
        stack: Stack,
        folder: Path,
        ddl: str = DDL,
        settings: str = "",
        pipeline: str = "",
        partitions: int = 1,
        own_connector: bool = False,
    ) -> None:
        self.stack = stack
        self.name = f"t{uuid.uuid4().hex[:8]}" if not own_connector else f"own{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.partitions = partitions
        self._own_connector = own_connector
        self.addresses = stack.addresses()
        self.config_path = folder / f"{self.name}.toml"
        self.config_path.write_text(self._toml(settings, pipeline))
        self.config: Config = load(self.config_path)
        source = self.config.sources[0]
        assert isinstance(source, PostgresSource)
        self.source = source
        self.db = psycopg.connect(self.addresses.postgres_dsn, autocommit=True)
        self.redis = Redis.from_url(self.addresses.redis_url)
        self._daemons: list[DaemonProcess] = []
        self._workers: list[WorkerProcess] = []
        self.running_worker: WorkerProcess | None = None
        self.db.execute(f"create table {self.name} ({ddl})")
        self.topic = self.config.topic(self.config.pipelines[0])
        prepare(source, self.config.pipelines, self.config.kafka)

    def _toml(self, settings: str, pipeline: str) -> str:
        a = self.addresses
        source = self.name if self._own_connector else SHARED_SOURCE
        return f"""
            [kafka]
            bootstrap_servers = "{a.kafka_bootstrap_servers}"
            group_id = "{self.name}"
            session_timeout_ms = 6000
            [connect]
            url = "{a.connect_url}"
            [redis]
            url = "{a.redis_url}"
            [embedding]
            url = "{a.triton_grpc}"
            [telemetry]
            address = "{METRICS}"
            log_format = "json"
            [temporal]
            address = "{a.temporal_address}"
            ui_url = "{a.temporal_ui_url}"
            task_queue = "{self.name}"
            [temporal.worker]
            deployment = "{self.name}"
            metrics_address = "{METRICS}"
            sdk_metrics_address = "{SDK_METRICS}"
            {settings}
            [[sources]]
            kind = "postgres"
            name = "{source}"
            dsn = "{a.postgres_dsn}"
            topic_partitions = {self.partitions}
            connector = {{ "poll.interval.ms" = "{POLL_INTERVAL_MS}" }}
            [[pipelines]]
            name = "{self.name}"
            source = "{source}"
            table = "public.{self.name}"
            text = "{TEXT}"
            metadata = [{{ column = "category" }}, {{ column = "price", type = "numeric" }}]
            {pipeline}
        """

    @property
    def dead_letter_topic(self) -> str:
        return self.config.kafka.dead_letter_topic(self.name)

    def connect(self) -> None:
        """Create the connector, unless it is there, and wait until it streams."""
        with KafkaConnect(self.config.connect) as client:
            client.apply(self.source.name, self._definition())
            client.wait_until_streaming(self.source, deadline_s=60)

    def _definition(self) -> dict[str, str]:
        """The connector's configuration; the shared one's is the same for every table."""
        if self._own_connector:
            return render(self.source, self.config.pipelines)
        settings = {**self.source.connector, "table.include.list": SHARED_TABLES}
        shared = PostgresSource(name=SHARED_SOURCE, dsn=self.source.dsn, connector=settings)
        return render(shared, self.config.pipelines)

    def start_daemon(self) -> DaemonProcess:
        """Start a daemon without waiting for it."""
        number, port = len(self._daemons), free_port()
        config = self.folder / f"daemon-{number}.toml"
        config.write_text(self.config_path.read_text().replace(METRICS, f"127.0.0.1:{port}"))
        daemon = DaemonProcess(config, self.folder / f"daemon-{number}.log", port)
        self._daemons.append(daemon)
        return daemon

    @contextmanager
    def daemon(self) -> Iterator[DaemonProcess]:
        daemon = self.start_daemon().wait_ready()
        try:
            yield daemon
            daemon.stop()
        finally:
            daemon.close()

    def start_worker(self) -> WorkerProcess:
        """Start a worker of the workflows without waiting for it."""
        number, ports = len(self._workers), free_ports(2)
        config = self.folder / f"worker-{number}.toml"
        text = self.config_path.read_text()
        text = text.replace(f'"{METRICS}"', f'"127.0.0.1:{ports[0]}"')
        config.write_text(text.replace(f'"{SDK_METRICS}"', f'"127.0.0.1:{ports[1]}"'))
        worker = WorkerProcess(config, self.folder / f"worker-{number}.log", *ports)
        self._workers.append(worker)
        return worker

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        worker = self.start_worker().wait_ready()
        try:
            yield worker
            worker.stop()
        finally:
            worker.close()

    def command(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `livevec` with this table's configuration to its end."""
        command = [
            str(Path(sys.executable).parent / "livevec"),
            "--config",
            str(self.config_path),
            *arguments,
        ]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)

    def reconnect(self) -> None:
        """A new connection, if PostgreSQL answers."""
        self.db.close()
        try:
            self.db = psycopg.connect(self.addresses.postgres_dsn, autocommit=True)
        except psycopg.OperationalError:
            time.sleep(0.2)

    def execute(self, sql: str, *parameters: object) -> None:
        self.db.execute(sql.replace("$T", self.name), parameters)

    # ---- comparing the index with the table, independently of the code under test

    def expected(self) -> dict[str, tuple[str, str | None, str | None]]:
        """What the index must hold: id -> (text, category, price)."""
        rows = self.db.execute(f"select id, title, body, category, price::text from {self.name}")
        return {
            str(key): (f"{title or ''}: {body or ''}", category, price)
            for key, title, body, category, price in rows
        }

    def indexed(self) -> dict[str, tuple[str, str | None, str | None]]:
        """What the index holds, by what a search client sees: one chunk a document."""
        return {key: value[:3] for key, value in self.documents().items()}

    def documents(self) -> dict[str, tuple[str, str | None, str | None, bytes]]:
        keys = list(self.redis.scan_iter(match=f"lv:{self.name}:1:doc:*", count=1000))
        found = {}
        for start in range(0, len(keys), 500):
            pipe = self.redis.pipeline(transaction=False)
            for key in keys[start : start + 500]:
                pipe.hmget(key, "id", "text", "category", "price", "embedding")
            for identifier, text, category, price, vector in pipe.execute():
                if identifier is not None:
                    found[identifier.decode()] = (text.decode(), _text(category), _text(price), vector)
        return found

    def wait_equal(self, deadline_s: float = 90.0) -> dict[str, tuple[str, str | None, str | None]]:
        """Wait until index and table are equal; answers the table."""
        ends_at = time.monotonic() + deadline_s
        while (expected := self.expected()) != (indexed := self.indexed()):
            if time.monotonic() > ends_at:
                raise AssertionError(self._difference(expected, indexed))
            time.sleep(0.2)
        return expected

    def _difference(self, expected: dict[str, Any], indexed: dict[str, Any]) -> str:
        missing, orphaned = expected.keys() - indexed.keys(), indexed.keys() - expected.keys()
        stale = [key for key in expected.keys() & indexed.keys() if expected[key] != indexed[key]]
        logs = "\n".join(daemon.log.read_text()[-1500:] for daemon in self._daemons)
        return (
            f"{len(missing)} missing {sorted(missing)[:5]}, {len(orphaned)} orphaned {sorted(orphaned)[:5]}, "
            f"{len(stale)} stale {[(expected[k], indexed[k]) for k in stale[:2]]}\n{logs}"
        )

    def vectors(self) -> dict[str, npt.NDArray[np.float32]]:
        return {key: np.frombuffer(value[3], np.float32) for key, value in self.documents().items()}

    def committed(self) -> dict[int, int]:
        """Offsets that the daemon's group has committed, by partition."""
        consumer = Consumer(
            {"bootstrap.servers": self.addresses.kafka_bootstrap_servers, "group.id": self.name}
        )
        try:
            partitions = [TopicPartition(self.topic, number) for number in range(self.partitions)]
            return {p.partition: p.offset for p in consumer.committed(partitions, timeout=10)}
        finally:
            consumer.close()

    def end_offsets(self) -> dict[int, int]:
        consumer = Consumer(
            {"bootstrap.servers": self.addresses.kafka_bootstrap_servers, "group.id": "test-watermarks"}
        )
        try:
            return {
                number: consumer.get_watermark_offsets(TopicPartition(self.topic, number), timeout=10)[1]
                for number in range(self.partitions)
            }
        finally:
            consumer.close()

    def dead_letters(self) -> list[dict[str, str]]:
        """Headers of all dead letters so far."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.addresses.kafka_bootstrap_servers,
                "group.id": f"test-{uuid.uuid4().hex}",
                "auto.offset.reset": "earliest",
            }
        )
        try:
            end = consumer.get_watermark_offsets(TopicPartition(self.dead_letter_topic, 0), timeout=10)[1]
            consumer.assign([TopicPartition(self.dead_letter_topic, 0, 0)])
            letters: list[dict[str, str]] = []
            while len(letters) < end:
                for message in consumer.consume(end - len(letters), timeout=1):
                    assert message.error() is None, message.error()
                    letters.append(
                        {name: value.decode() for name, value in dict(message.headers() or []).items()}
                    )
            return letters
        finally:
            consumer.close()

    def end_workflows(self) -> None:
        """Terminate what runs for this table: no worker will take it up any more."""
        if not self._workers:
            return

        async def end() -> None:
            async def there() -> Client:
                while True:
                    with suppress(WorkflowError):
                        return await connect(self.config)
                    await asyncio.sleep(0.2)

            client = await asyncio.wait_for(there(), 60)
            async for one in client.list_workflows(
                f"LivevecPipeline = '{self.name}' AND ExecutionStatus = 'Running'"
            ):
                await client.get_workflow_handle(one.id).terminate("the test is over")

        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, end()).result()

    def close(self) -> None:
        """Stop the daemons and workers, remove the index, and the connector if it is the table's own."""
        for process in (*self._daemons, *self._workers):
            process.close()
        self.end_workflows()
        if self._own_connector:
            self._remove_source()
        # A table and a topic of the shared connector stay: it may still be about to read the one and write the other.
        self.db.close()
        for index in self.redis.execute_command("FT._LIST"):
            if index.startswith(f"{self.name}:".encode()):
                self.redis.execute_command("FT.DROPINDEX", index, "DD")
        for pattern in (f"lv:{self.name}:*", f"lv:positions:{self.name}:*", f"lv:source:{self.name}:*"):
            for key in self.redis.scan_iter(match=pattern, count=1000):
                self.redis.delete(key)
        self.redis.close()

    def _remove_source(self) -> None:
        with KafkaConnect(self.config.connect) as client:
            # Its stored offsets may stay, which take Connect a second to remove: no other connector gets this name.
            client.delete(self.source, with_slot=False)
        slot.drop(self.source, 30)
        admin = AdminClient({"bootstrap.servers": self.addresses.kafka_bootstrap_servers})
        topics = [
            self.topic,
            heartbeat_topic(self.source),
            self.source.message_topic,
            self.dead_letter_topic,
        ]
        for deleted in admin.delete_topics(topics).values():
            deleted.exception()
        self.db.execute(f"drop publication if exists {self.source.publication_name}")
        self.db.execute(f"drop table if exists {self.name}")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()

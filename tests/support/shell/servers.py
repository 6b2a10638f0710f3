"""All servers together, and the edges through which one process reaches them."""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from daemon.embedding.embedder import Embedder
from daemon.live.edges import Edges
from daemon.settings import Config, EmbeddingSettings, KafkaSettings, PostgresSource, RedisSettings
from daemon.source.kafka.reader import Listener
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from tests.support.shell.embedder import EmbeddingProvider, FakeEmbedder
from tests.support.shell.faults import Faults
from tests.support.shell.kafka import BATCH_RECORDS, Broker, FakeKafkaReader
from tests.support.shell.letters import FakeDeadLetterProducer, LetterBox
from tests.support.shell.postgres import Database, FakePostgresReader
from tests.support.shell.process import Process
from tests.support.shell.redis import FakeRedis, RedisServer


class Servers:
    """Outlive every process.

    Args:
        config: of the daemon; its first source is the database.
        random: makes every choice of the database.
        partitions: of the table's topic.
        record: keep every call over an edge.
    """

    def __init__(
        self, config: Config, random: Random | None = None, partitions: int = 2, record: bool = False
    ) -> None:
        source = next(source for source in config.sources if isinstance(source, PostgresSource))
        self.faults = Faults(record)
        self.redis = RedisServer(self.faults)
        self.broker = Broker(self.faults)
        self.database = Database(self.faults, self.broker, source, random or Random(1), partitions)
        self.provider = EmbeddingProvider(self.faults)
        self.letters = LetterBox(self.faults)
        self.batch_records: Callable[[], int] = lambda: BATCH_RECORDS

    def edges(self, process: Process) -> "FakeEdges":
        return FakeEdges(self, process)


class FakeTelemetry:
    """Nobody scrapes."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class FakeEdges(Edges):
    """The vendor's parts of one process.

    Attributes:
        stop: set by SIGTERM, once the process has begun to run.
        reader: its Kafka reader; None before it was made.
    """

    def __init__(self, servers: Servers, process: Process) -> None:
        self._servers = servers
        self._process = process
        self.stop: asyncio.Event
        self.reader: FakeKafkaReader | None = None

    def redis(self, settings: RedisSettings) -> FakeRedis:
        del settings
        return self._servers.redis.client(self._process)

    def source(self, settings: PostgresSource) -> FakePostgresReader:  # type: ignore[override]
        return self._servers.database.reader(settings, self._process)

    def dead_letters(self, settings: KafkaSettings) -> FakeDeadLetterProducer:  # type: ignore[override]
        del settings
        return self._servers.letters.producer(self._process)

    def consumer(  # type: ignore[override]
        self, settings: KafkaSettings, topics: Sequence[str], listener: Listener
    ) -> FakeKafkaReader:
        self.reader = FakeKafkaReader(
            self._servers.broker,
            settings.group_id,
            topics,
            listener,
            self._process,
            lambda: self._servers.batch_records(),
        )
        return self.reader

    def embedder(self, settings: EmbeddingSettings) -> Embedder:
        embedder: FakeEmbedder = self._servers.provider.embedder(
            settings.model, settings.dimension, self._process
        )
        return embedder

    def telemetry(self, address: str, metrics: Metrics, health: Health) -> FakeTelemetry:  # type: ignore[override]
        del address, metrics, health
        return FakeTelemetry()

    def stop_signals(self, stop: asyncio.Event) -> None:
        self.stop = stop

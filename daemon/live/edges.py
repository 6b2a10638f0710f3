"""Where the daemon ends and other processes begin: what is made here talks to a server, to a person or to the kernel.

The shell is put together over these; its tests hand in others, and run all of it in one process.
"""

import asyncio
import signal
from collections.abc import Sequence

from daemon.embedding.embedder import Embedder
from daemon.embedding.factory import make_embedder
from daemon.index.connection import Client, connect
from daemon.settings import EmbeddingSettings, KafkaSettings, PostgresSource, RedisSettings
from daemon.source.kafka.dead_letters import DeadLetterProducer
from daemon.source.kafka.reader import KafkaReader, Listener
from daemon.source.postgres.reader import PostgresReader
from daemon.telemetry.health import Health
from daemon.telemetry.http import TelemetryServer
from daemon.telemetry.metrics import Metrics


class Edges:
    """Makes the parts of the daemon that reach out of the process. Nothing is connected yet."""

    def redis(self, settings: RedisSettings) -> Client:
        return connect(settings)

    def source(self, settings: PostgresSource) -> PostgresReader:
        return PostgresReader(settings)

    def embedder(self, settings: EmbeddingSettings) -> Embedder:
        return make_embedder(settings)

    def dead_letters(self, settings: KafkaSettings) -> DeadLetterProducer:
        return DeadLetterProducer(settings)

    def consumer(self, settings: KafkaSettings, topics: Sequence[str], listener: Listener) -> KafkaReader:
        return KafkaReader(settings, topics, listener, asyncio.get_running_loop())

    def telemetry(self, address: str, metrics: Metrics, health: Health) -> TelemetryServer:
        return TelemetryServer(address, metrics, health)

    def stop_signals(self, stop: asyncio.Event) -> None:
        """Set the event on SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

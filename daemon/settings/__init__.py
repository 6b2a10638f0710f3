"""The settings: what daemon.toml may say, as frozen models.

Each field's description is the reference documentation: docs/configuration.md is generated from them
(`livevec config docs`). daemon/config.py reads the file.
"""

from daemon.settings.base import LOCAL, Settings, nearest
from daemon.settings.config import Config
from daemon.settings.embedding import EmbeddingSettings
from daemon.settings.pipeline import RESERVED_FIELDS, ChunkingSettings, IndexSettings, MetadataField, Pipeline
from daemon.settings.running import (
    BatchingSettings,
    LocalSettings,
    RetrySettings,
    SlowLaneSettings,
    TelemetrySettings,
)
from daemon.settings.servers import ConnectSettings, KafkaSettings, RedisSettings
from daemon.settings.sources import ERA_HEADER, SOURCE_KINDS, EventSource, PostgresSource, Source
from daemon.settings.workflows import (
    ReindexSettings,
    RetryDeadLettersSettings,
    TemporalSettings,
    WorkerSettings,
)

__all__ = [
    "ERA_HEADER",
    "LOCAL",
    "RESERVED_FIELDS",
    "SOURCE_KINDS",
    "BatchingSettings",
    "ChunkingSettings",
    "Config",
    "ConnectSettings",
    "EmbeddingSettings",
    "EventSource",
    "IndexSettings",
    "KafkaSettings",
    "LocalSettings",
    "MetadataField",
    "Pipeline",
    "PostgresSource",
    "RedisSettings",
    "ReindexSettings",
    "RetryDeadLettersSettings",
    "RetrySettings",
    "Settings",
    "SlowLaneSettings",
    "Source",
    "TelemetrySettings",
    "TemporalSettings",
    "WorkerSettings",
    "nearest",
]

"""The settings: what daemon.toml may contain, as frozen models.

Each field's description is its reference documentation: `livevec config docs` generates docs/configuration.md from
them. `daemon/config.py` reads the file.
"""

from daemon.settings.config import Config as Config
from daemon.settings.pipelines import ERA_HEADER as ERA_HEADER
from daemon.settings.pipelines import SOURCE_KINDS as SOURCE_KINDS
from daemon.settings.pipelines import ChunkingSettings as ChunkingSettings
from daemon.settings.pipelines import EventSource as EventSource
from daemon.settings.pipelines import IndexSettings as IndexSettings
from daemon.settings.pipelines import MetadataField as MetadataField
from daemon.settings.pipelines import Pipeline as Pipeline
from daemon.settings.pipelines import PostgresSource as PostgresSource
from daemon.settings.pipelines import Source as Source
from daemon.settings.sections import LOCAL as LOCAL
from daemon.settings.sections import BatchingSettings as BatchingSettings
from daemon.settings.sections import ConnectSettings as ConnectSettings
from daemon.settings.sections import EmbeddingSettings as EmbeddingSettings
from daemon.settings.sections import KafkaSettings as KafkaSettings
from daemon.settings.sections import RedisSettings as RedisSettings
from daemon.settings.sections import RetrySettings as RetrySettings
from daemon.settings.sections import Settings as Settings
from daemon.settings.sections import SlowLaneSettings as SlowLaneSettings
from daemon.settings.sections import nearest as nearest
from daemon.settings.workflows import ReindexSettings as ReindexSettings
from daemon.settings.workflows import RetryDeadLettersSettings as RetryDeadLettersSettings
from daemon.settings.workflows import TemporalSettings as TemporalSettings
from daemon.settings.workflows import WorkerSettings as WorkerSettings

"""The whole of daemon.toml, and the checks between its sections."""

import re
from typing import Self

from pydantic import model_validator

from daemon.errors import ConfigError
from daemon.settings.pipelines import EventSource, Pipeline, PostgresSource, Source
from daemon.settings.sections import (
    BatchingSettings,
    ConnectSettings,
    EmbeddingSettings,
    KafkaSettings,
    LocalSettings,
    PositiveFloat,
    RedisSettings,
    RetrySettings,
    Settings,
    SlowLaneSettings,
    TelemetrySettings,
    nearest,
)
from daemon.settings.workflows import ReindexSettings, RetryDeadLettersSettings, TemporalSettings


class Config(Settings):
    """The whole of daemon.toml."""

    kafka: KafkaSettings = KafkaSettings()
    connect: ConnectSettings = ConnectSettings()
    redis: RedisSettings = RedisSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    batching: BatchingSettings = BatchingSettings()
    slow_lane: SlowLaneSettings = SlowLaneSettings()
    retry: RetrySettings = RetrySettings()
    retry_dead_letters: RetryDeadLettersSettings = RetryDeadLettersSettings()
    reindex: ReindexSettings = ReindexSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    temporal: TemporalSettings = TemporalSettings()
    local: LocalSettings = LocalSettings()
    shutdown_timeout_s: PositiveFloat = 20.0
    """Longest time to finish what is in flight after SIGTERM."""
    sources: tuple[Source, ...] = ()
    """The sources of changes."""
    pipelines: tuple[Pipeline, ...] = ()
    """The tables and topics that are mirrored."""

    @model_validator(mode="after")
    def _references(self) -> Self:
        for kind, names in (
            ("source", [s.name for s in self.sources]),
            ("pipeline", [p.name for p in self.pipelines]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {kind}s are named {name!r}; names are unique")
        for pipeline in self.pipelines:
            known = [source.name for source in self.sources]
            if pipeline.source not in known:
                raise ValueError(
                    f"pipeline {pipeline.name!r} reads source {pipeline.source!r}, which is not defined"
                    f"{nearest(pipeline.source, known)}"
                )
            if isinstance(self.source(pipeline.source), PostgresSource):
                if not re.fullmatch(r"[^.]+\.[^.]+", pipeline.table):
                    raise ValueError(f"pipeline {pipeline.name!r}: table must be `schema.table`")
            elif not pipeline.topic:
                raise ValueError(f"pipeline {pipeline.name!r}: an events source needs `topic`")
        return self

    def source(self, name: str) -> PostgresSource | EventSource:
        return next(source for source in self.sources if source.name == name)

    def pipeline(self, name: str) -> Pipeline:
        """Return the pipeline of that name, or raise ConfigError with the nearest name."""
        for pipeline in self.pipelines:
            if pipeline.name == name:
                return pipeline
        names = [pipeline.name for pipeline in self.pipelines]
        raise ConfigError(
            f"no pipeline is named {name!r}{nearest(name, names)}; defined: {', '.join(names) or 'none'}"
        )

    def topic(self, pipeline: Pipeline) -> str:
        """Return the topic that a pipeline reads."""
        return pipeline.topic_name

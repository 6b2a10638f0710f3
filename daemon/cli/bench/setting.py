"""What a measurement works on: names of its own beside the user's servers and tuning, and its configuration file."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import SecretStr

from daemon.errors import ConfigError
from daemon.settings import Config, Pipeline, PostgresSource

NAME = "livevec_bench"
FLOOR = "livevec_bench_floor"


@dataclass(frozen=True)
class Setting:
    """The configuration of the measured daemon, its source, and the pipelines that the connector serves, by name."""

    config: Config
    source: PostgresSource
    pipelines: tuple[Pipeline, ...]

    @classmethod
    def of(cls, config: Config, names: Sequence[str]) -> "Setting":
        """Return the user's servers and tuning, with a source and pipelines of their own, each on a table of its name.

        Raises:
            ConfigError: the configuration names no PostgreSQL source, or an embedder that may charge for each text.
        """
        if config.embedding.provider != "triton":
            raise ConfigError(
                "a measurement embeds tens of thousands of texts, which may be charged for, and compares with "
                'Triton alone: set provider = "triton" for it'
            )
        known = [source for source in config.sources if isinstance(source, PostgresSource)]
        if not known:
            raise ConfigError("a measurement needs PostgreSQL: define a source with its dsn in daemon.toml")
        source = known[0].model_copy(
            update={"name": NAME, "slot": NAME, "publication": NAME, "snapshot_mode": "no_data", "era": 0}
        )
        pipelines = tuple(
            Pipeline(name=name, source=NAME, table=f"public.{name}", text="{body}") for name in names
        )
        own = config.model_copy(
            update={
                "kafka": config.kafka.model_copy(update={"group_id": NAME}),
                "telemetry": config.telemetry.model_copy(update={"log_format": "json"}),
                "sources": (source,),
                "pipelines": pipelines,
            }
        )
        return cls(own, source, pipelines)

    def daemon(self, pipeline: Pipeline) -> Config:
        """Return the configuration of a daemon that mirrors this pipeline alone."""
        telemetry = self.config.telemetry.model_copy(update={"address": f"127.0.0.1:{free_port()}"})
        return self.config.model_copy(update={"telemetry": telemetry, "pipelines": (pipeline,)})


def write_config(path: Path, config: Config) -> None:
    """Write a file that `config.load` reads back as this configuration; only its owner may read it."""
    path.touch(mode=0o600)
    path.write_text(to_toml(config), "utf-8")


def to_toml(config: Config) -> str:
    """Return the configuration as TOML, its secrets in plain text."""
    return tomli_w.dumps(_plain(config.model_dump(exclude_none=True)))


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

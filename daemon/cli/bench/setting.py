"""What a measurement works on: names of its own beside the user's servers and tuning."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from daemon.errors import ConfigError
from daemon.settings import Config, Pipeline, PostgresSource

NAME = "livevec_bench"
FLOOR = "livevec_bench_floor"
POLICIES = {policy: f"{NAME}_{policy}" for policy in ("fixed", "aimd", "deadline")}
"""The table of each policy."""


@dataclass(frozen=True)
class Setting:
    """The configuration of the measured daemon, its source, and the pipelines that the connector serves, by name."""

    config: Config
    source: PostgresSource
    pipelines: tuple[Pipeline, ...]

    @classmethod
    def of(cls, config: Config, names: Sequence[str]) -> "Setting":
        """The user's servers and tuning, with a source and pipelines of its own, each on a table of its name.

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
                "pipelines": pipelines[:1],
            }
        )
        return cls(own, source, pipelines)

    def daemon(self, pipeline: Pipeline, tuning: "Tuning") -> Config:
        """Of a daemon that mirrors this pipeline alone."""
        config = self.config
        return config.model_copy(
            update={
                "telemetry": config.telemetry.model_copy(update={"address": f"127.0.0.1:{free_port()}"}),
                "pipelines": (pipeline,),
                "batching": config.batching.model_copy(
                    update={"policy": tuning.policy or config.batching.policy}
                ),
                "embedding": config.embedding.model_copy(
                    update={"url": tuning.embedder_url or config.embedding.url}
                ),
            }
        )


@dataclass(frozen=True)
class Tuning:
    """What a measured daemon has otherwise than the user's; empty: as the user's."""

    policy: str = ""
    embedder_url: str = ""


AS_THE_USER = Tuning()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


TOKENS = 14
Tokens = Annotated[int, typer.Option(min=3, max=500, help="Tokens of a text, about.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Also draw it there: SVG, or PNG where the name ends in .png.")
]

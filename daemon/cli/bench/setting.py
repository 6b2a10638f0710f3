"""What a measurement works on: names of its own beside the user's servers and tuning, its configuration, removal."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
import redis
import tomli_w
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

from connectors.connect import KafkaConnect
from connectors.topics import topics
from daemon.bench.load import LoadTable
from daemon.cli import context as given
from daemon.errors import ConfigError, LivevecError
from daemon.settings import Config, Pipeline, PostgresSource

NAME = "livevec_bench"
FLOOR = "livevec_bench_floor"
_ADMIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Setting:
    """The configuration of what is measured: its only source, and a pipeline for each system."""

    config: Config
    source: PostgresSource

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
        source = given.postgres_sources(config, None)[0].model_copy(
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
        return cls(own, source)

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


# ---- removing what a measurement made, also one that was killed


def remove(config: Config, connection: psycopg.Connection[Any], names: Sequence[str]) -> None:
    """Remove the connector, slot, publication, tables, topics, groups and keys, as far as they exist.

    Args:
        names: of the measurement's pipelines; those of `livevec bench` are removed in any case.

    Raises:
        LivevecError: a server refused.
    """
    setting = Setting.of(config, tuple({NAME, FLOOR, *names}))
    with KafkaConnect(setting.config.connect) as client:
        client.delete(setting.source, with_slot=True)
    connection.execute(f"DROP PUBLICATION IF EXISTS {NAME}")
    for pipeline in setting.config.pipelines:
        LoadTable(connection, pipeline.table).drop()
    _remove_topics(setting)
    _remove_keys(setting.config)


def _remove_topics(setting: Setting) -> None:
    """Delete topics and groups, and wait until they are gone: before, no topic of the same name can be created."""
    kafka = setting.config.kafka
    # log_level 0: librdkafka's own lines would stand between those of the command; its errors are raised anyway.
    admin = AdminClient({**kafka.client, "bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
    try:
        present = admin.list_topics(timeout=_ADMIN_TIMEOUT_S).topics
        names = [
            topic.name
            for topic in topics(setting.source, setting.config.pipelines, kafka)
            if topic.name in present
        ]
        deletions = admin.delete_topics(names, operation_timeout=_ADMIN_TIMEOUT_S) if names else {}
        for deletion in deletions.values():
            deletion.result()
        groups = {group.group_id for group in admin.list_consumer_groups().result().valid}
        ours = [name for name in (NAME, FLOOR, f"{NAME}.retry") if name in groups]
        for deletion in admin.delete_consumer_groups(ours).values() if ours else ():
            deletion.result()
    except KafkaException as error:
        raise LivevecError(
            f"Kafka did not delete what the measurement made ({error.args[0].str()}); delete the topics named "
            f"{NAME}* by hand"
        ) from error


def _remove_keys(config: Config) -> None:
    if config.redis.cluster:
        raise ConfigError("a measurement needs a single Redis, not a cluster: set redis.cluster = false")
    with redis.Redis.from_url(config.redis.url.get_secret_value()) as client:
        for name in cast(Any, client.execute_command("FT._LIST")):
            if name.startswith(NAME.encode()):
                cast(Any, client.ft(name.decode())).dropindex(delete_documents=True)
        for prefix in ("lv:", "lv:positions:", "lv:source:", ""):
            for key in client.scan_iter(match=f"{prefix}{NAME}[:_]*", count=1000):
                client.unlink(key)

"""Removing what a measurement made, also one that was killed."""

from collections.abc import Sequence
from typing import Any, cast

import psycopg
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from connectors.connect import KafkaConnect
from connectors.topics import topics
from daemon.bench.load import LoadTable
from daemon.cli.bench.setting import FLOOR, NAME, Setting
from daemon.errors import ConfigError, LivevecError
from daemon.settings import Config

_ADMIN_TIMEOUT_S = 30.0


def remove(config: Config, connection: "psycopg.Connection[Any]", names: Sequence[str]) -> None:
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

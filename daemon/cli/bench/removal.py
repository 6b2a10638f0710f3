"""Removes what measurements made, also one that was killed."""

from typing import Any, cast

import psycopg
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from connectors.connect import KafkaConnect
from connectors.topics import topics
from daemon.bench import guard
from daemon.bench.load import Table
from daemon.cli.bench.setting import FLOOR, NAME, POLICIES, Setting
from daemon.cli.librdkafka import quiet_log
from daemon.errors import ConfigError, LivevecError
from daemon.settings import Config

_ADMIN_TIMEOUT_S = 30.0


def remove(config: Config, connection: "psycopg.Connection[Any]") -> None:
    """Connector, slot, publication, tables, topics, groups and keys of any measurement, as far as they are there."""
    setting = Setting.of(config, (NAME, FLOOR, *POLICIES.values()))
    with KafkaConnect(setting.config.connect) as client:
        client.delete(setting.source, with_slot=True)
    connection.execute(f"DROP PUBLICATION IF EXISTS {NAME}")
    for pipeline in setting.pipelines:
        Table(connection, pipeline.table).drop()
    _remove_topics(setting)
    _remove_keys(setting.config)


def _remove_topics(setting: Setting) -> None:
    """Waits until they are gone: a topic of the same name could not be made before."""
    kafka = setting.config.kafka
    admin = AdminClient({**kafka.client, "bootstrap.servers": kafka.bootstrap_servers}, logger=quiet_log())
    try:
        present = admin.list_topics(timeout=_ADMIN_TIMEOUT_S).topics
        wanted = [topic.name for topic in topics(setting.source, setting.pipelines, kafka)]
        names = [name for name in wanted if name in present]
        for deleted in (
            admin.delete_topics(names, operation_timeout=_ADMIN_TIMEOUT_S).values() if names else ()
        ):
            deleted.result()
        groups = {found.group_id for found in admin.list_consumer_groups().result().valid}
        ours = [name for name in (NAME, FLOOR, f"{NAME}.retry") if name in groups]
        for gone in admin.delete_consumer_groups(ours).values() if ours else ():
            gone.result()
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
            index = name.decode() if isinstance(name, bytes) else str(name)
            if index.startswith(NAME):
                cast(Any, client.ft(index)).dropindex(delete_documents=True)
        guard.remove_keys(client)
        for prefix in ("lv:", "lv:positions:", "lv:source:", ""):
            for key in client.scan_iter(match=f"{prefix}{NAME}[:_]*", count=1000):
                client.unlink(key)

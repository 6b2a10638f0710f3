"""A PostgreSQL source and its pipelines -> the Debezium connector's configuration.

The settings that keep a row from being lost or bent in silence, and those of the form of a value that
`daemon/source/postgres/values.py` reproduces when it reads the row itself, are `rules.WRITTEN`. Every other value that
is not Debezium's default is here for latency (L) or for healing without a person (H).
"""

import re
from collections.abc import Sequence

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from connectors.rules import WRITTEN, check_definition
from daemon.errors import ConnectorError
from daemon.settings import ERA_HEADER, Pipeline, PostgresSource

RECORD_BYTES_MAX = 16 * 1024 * 1024
"""Largest record that the connector may send and that a topic made by livevec takes (Kafka's default: 1 MB)."""
_REMEDY_OF_DSN = "write it as postgresql://user:password@host:5432/database"
_QUEUE_BYTES_MAX = 64 * 1024 * 1024


def render(
    source: PostgresSource, pipelines: Sequence[Pipeline], exclude: Sequence[str] = ()
) -> dict[str, str]:
    """Return the configuration of the connector named `source.name`, for the tables of those pipelines that read it.

    Args:
        exclude: columns to leave out, as `exclusions` gives them.

    Raises:
        ConnectorError: no pipeline reads the source, the connection string names no single TCP address, or
            `sources.connector` overrides a setting that keeps rows from being lost.
    """
    tables = sorted({pipeline.table for pipeline in pipelines if pipeline.source == source.name})
    if not tables:
        raise ConnectorError(
            f"no pipeline reads source {source.name!r}", "define one in daemon.toml, or remove the source"
        )
    definition = {
        **{rule.key: rule.allowed[0] for rule in WRITTEN},
        "tasks.max": "1",
        **_database(source),
        **_capture(source, tables),
        **_delivery(source),
        **source.connector,
    }
    excluded = [source.connector.get("column.exclude.list", ""), *map(_escape, exclude)]
    if any(excluded):
        definition["column.exclude.list"] = ",".join(filter(None, excluded))
    for finding in check_definition(definition):
        if not finding.ok:
            raise ConnectorError(f"sources.{source.name}.connector: {finding.message}", finding.remedy)
    return definition


def connector_user(source: PostgresSource) -> str:
    """Return the role with which Debezium logs in."""
    return _database(source)["database.user"]


def heartbeat_topic(source: PostgresSource) -> str:
    return f"__debezium-heartbeat.{source.name}"


def _database(source: PostgresSource) -> dict[str, str]:
    dsn = (source.capture_dsn or source.dsn).get_secret_value()
    try:
        parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    except ProgrammingError as error:
        raise ConnectorError(
            f"the connection string of source {source.name!r} cannot be read: {error}".strip(), _REMEDY_OF_DSN
        ) from None
    host, port = parts.get("host", "localhost"), parts.get("port", "5432")
    if "," in host or host.startswith("/"):
        raise ConnectorError(
            f"source {source.name!r} names {host!r} as its host, but Debezium needs one TCP address",
            "set `capture_dsn` to the address of the primary (or of a proxy that follows it)",
        )
    for part in ("dbname", "user"):
        if part not in parts:
            raise ConnectorError(
                f"the connection string of source {source.name!r} names no {part}", _REMEDY_OF_DSN
            )
    ssl = ("sslmode", "sslcert", "sslkey", "sslrootcert", "sslpassword")
    return {
        "database.hostname": host,
        "database.port": port,
        "database.user": parts["user"],
        "database.password": parts.get("password", ""),
        "database.dbname": parts["dbname"],
        **{f"database.{key}": parts[key] for key in ssl if key in parts},
    }


def _capture(source: PostgresSource, tables: Sequence[str]) -> dict[str, str]:
    """Return the settings of what is read from PostgreSQL, and of how reading goes on after a fault."""
    return {
        "publication.name": source.publication_name,
        "slot.name": source.slot_name,
        "topic.prefix": source.name,
        "table.include.list": ",".join(_escape(table) for table in tables),
        "snapshot.mode": source.snapshot_mode,
        "snapshot.fetch.size": "1000",
        "tombstones.on.delete": "true",
        "include.unknown.datatypes": "false",
        "heartbeat.interval.ms": str(source.heartbeat_interval_ms),
        "status.update.interval.ms": "1000",
        # H: the defaults are 10 s each; a slot stays taken until PostgreSQL has noticed that its reader died.
        "errors.max.retries": "-1",
        "retriable.restart.connector.wait.ms": "1000",
        "slot.retry.delay.ms": "1000",
        "slot.max.retries": "120",
    }


def _delivery(source: PostgresSource) -> dict[str, str]:
    """Return the settings of how records reach Kafka."""
    return {
        "poll.interval.ms": "2",  # L: the default of 500 would be the latency
        "producer.override.linger.ms": "0",  # L: the default of 5 delays every lone change
        "producer.override.acks": "all",
        "producer.override.enable.idempotence": "true",
        "producer.override.max.request.size": str(RECORD_BYTES_MAX),
        "max.queue.size.in.bytes": str(_QUEUE_BYTES_MAX),
        "provide.transaction.metadata": "false",
        "extended.headers.enabled": "false",
        "topic.creation.default.replication.factor": str(source.topic_replication_factor),
        "topic.creation.default.partitions": str(source.topic_partitions),
        "topic.creation.default.cleanup.policy": "delete",
        "topic.creation.default.max.message.bytes": str(RECORD_BYTES_MAX),
        "transforms": "era",
        "transforms.era.type": "org.apache.kafka.connect.transforms.InsertHeader",
        "transforms.era.header": ERA_HEADER,
        "transforms.era.value.literal": str(source.era),
    }


def _escape(name: str) -> str:
    """Return a full name as one Java regular expression, without a comma: Debezium splits its lists there."""
    return re.sub(r"[^A-Za-z0-9_.]", lambda char: f"\\x{{{ord(char[0]):x}}}", name).replace(".", "\\.")

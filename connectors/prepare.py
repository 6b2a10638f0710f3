"""Creates what a connector needs: the publication, its tables, the topics."""

from collections.abc import Sequence

import psycopg
from psycopg import sql

from connectors import slot
from connectors.slot import Connection
from connectors.topics import create_topics
from daemon.errors import ConnectorError
from daemon.settings import KafkaSettings, Pipeline, PostgresSource

_OPERATIONS = "publish = 'insert, update, delete, truncate'"
_GENERATED_MIN = 180000


def prepare(source: PostgresSource, pipelines: Sequence[Pipeline], kafka: KafkaSettings) -> list[str]:
    """Create or extend the publication and create the topics, as far as the source's settings allow.

    What is there already stays as it is; a second call does nothing.

    Returns:
        What was done, a line for each act.

    Raises:
        ConnectorError: PostgreSQL or Kafka is away, or refuses.
    """
    mine = [pipeline for pipeline in pipelines if pipeline.source == source.name]
    done: list[str] = []
    if source.create_publication:
        with slot.connected(source) as connection:
            done += _prepare_publication(connection, source, sorted({pipeline.table for pipeline in mine}))
    if source.create_topics:
        done += [f"created topic {name}" for name in create_topics(source, mine, kafka)]
    return done


def _prepare_publication(connection: Connection, source: PostgresSource, tables: Sequence[str]) -> list[str]:
    done: list[str] = []
    name = source.publication_name
    row = connection.execute(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_publication"
        " WHERE pubname = %s",
        [name],
    ).fetchone()
    if row is None:
        options = f"{_OPERATIONS}, publish_via_partition_root = true"
        if connection.info.server_version >= _GENERATED_MIN:
            # A template may use a stored generated column like any other.
            options += ", publish_generated_columns = stored"
        done.append(_alter(connection, name, sql.SQL("CREATE PUBLICATION {} WITH ({})"), sql.SQL(options)))
    else:
        whole, via_root = row
        if not whole:
            done.append(
                _alter(connection, name, sql.SQL("ALTER PUBLICATION {} SET ({})"), sql.SQL(_OPERATIONS))
            )
        if not via_root and _any_partitioned(connection, tables):
            option = sql.SQL("publish_via_partition_root = true")
            done.append(_alter(connection, name, sql.SQL("ALTER PUBLICATION {} SET ({})"), option))
    for table in _unpublished(connection, name, tables):
        done.append(_alter(connection, name, sql.SQL("ALTER PUBLICATION {} ADD TABLE {}"), table))
    return done


def _any_partitioned(connection: Connection, tables: Sequence[str]) -> bool:
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'p' AND n.nspname || '.' || c.relname = ANY(%s))",
        [list(tables)],
    ).fetchone()
    return row is not None and bool(row[0])


def _unpublished(connection: Connection, publication: str, tables: Sequence[str]) -> list[sql.Identifier]:
    """Return existing tables that the publication lacks; those that do not exist are the preflight's to report."""
    rows = connection.execute(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname || '.' || c.relname = ANY(%s) AND NOT EXISTS ("
        "  SELECT FROM pg_publication_tables t WHERE t.pubname = %s AND t.schemaname = n.nspname"
        "  AND t.tablename = c.relname) ORDER BY 1, 2",
        [list(tables), publication],
    )
    return [sql.Identifier(schema, table) for schema, table in rows]


def _alter(connection: Connection, publication: str, template: sql.SQL, part: sql.Composable) -> str:
    statement = template.format(sql.Identifier(publication), part)
    shown = statement.as_string(connection)
    try:
        connection.execute(statement)
    except psycopg.errors.DuplicateObject:
        return f"there already: {shown}"
    except psycopg.Error as error:
        raise ConnectorError(
            f"the publication cannot be prepared: {error}".strip(),
            f"run as the owner of the tables: {shown}; or set create_publication = false and create it yourself",
        ) from error
    return shown

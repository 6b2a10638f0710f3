"""Whether a PostgreSQL source and its topics are fit: every check that can be made before a connector runs.

Each finding that is not ok carries the statement or setting that makes it so. Nothing is changed here;
`connectors.prepare` creates what is missing where the configuration allows it.
"""

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from connectors import slot
from connectors.definition import connector_user
from connectors.prepare import prepare
from connectors.rules import Finding, check_definition, failed, passed
from connectors.slot import Connection
from connectors.tables import check_table
from connectors.topics import check_topics
from daemon.errors import ConnectorError
from daemon.settings import KafkaSettings, Pipeline, PostgresSource

__all__ = ["Finding", "check", "check_definition", "prepare"]

VERSION_MIN = 150000
"""PostgreSQL 15: the first whose catalog tells a publication's columns and row filters."""


def check(source: PostgresSource, pipelines: Sequence[Pipeline], kafka: KafkaSettings) -> list[Finding]:
    """Check the database, the publication, every pipeline's table, and the topics; this changes nothing."""
    mine = [pipeline for pipeline in pipelines if pipeline.source == source.name]
    return [*_check_database(source, mine), *check_topics(source, mine, kafka)]


def _check_database(source: PostgresSource, pipelines: Sequence[Pipeline]) -> list[Finding]:
    try:
        user = connector_user(source)
        with slot.connected(source) as connection:
            return _check_connected(connection, source, pipelines, user)
    except ConnectorError as error:
        return [Finding("connection", False, str(error), error.remedy)]


def _check_connected(
    connection: Connection, source: PostgresSource, pipelines: Sequence[Pipeline], user: str
) -> list[Finding]:
    findings = [passed("connection", "PostgreSQL answers"), _version(connection), _primary(connection)]
    if not all(finding.ok for finding in findings):
        return findings
    findings += [
        _wal_level(connection),
        _replication_right(connection, user),
        _free_slot(connection, source),
        _free_sender(connection, source),
    ]
    publication = _publication(connection, source)
    findings += publication
    for pipeline in pipelines:
        findings += check_table(connection, source, pipeline, user, published=publication[0].ok)
    return findings


def _version(connection: Connection) -> Finding:
    number = connection.info.server_version
    shown = connection.info.parameter_status("server_version") or str(number)
    if number >= VERSION_MIN:
        return passed("version", f"PostgreSQL {shown}")
    return failed("version", f"PostgreSQL {shown} is too old", f"use version {VERSION_MIN // 10000} or newer")


def _primary(connection: Connection) -> Finding:
    if not _one(connection, "SELECT pg_is_in_recovery()"):
        return passed("primary", "the server is a primary")
    return failed(
        "primary",
        "the server is a standby: its snapshots do not tell which transactions are running",
        "let `dsn` name the primary (list all hosts and add target_session_attrs=read-write)",
    )


def _wal_level(connection: Connection) -> Finding:
    level = _one(connection, "SELECT current_setting('wal_level')")
    if level == "logical":
        return passed("wal_level", "wal_level is logical")
    return failed(
        "wal_level",
        f"wal_level is {level!r}, so changes cannot be decoded",
        "ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL",
    )


def _replication_right(connection: Connection, user: str) -> Finding:
    row = connection.execute(
        "SELECT rolsuper OR rolreplication OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication'"
        " AND pg_has_role(r.oid, g.oid, 'member')) FROM pg_roles r WHERE rolname = %s",
        [user],
    ).fetchone()
    if row is None:
        return failed(
            "replication_right",
            f"the connector's role {user!r} does not exist",
            sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD '...'")
            .format(sql.Identifier(user))
            .as_string(connection),
        )
    if row[0]:
        return passed("replication_right", f"role {user!r} may replicate")
    return failed(
        "replication_right",
        f"role {user!r} may not start replication",
        sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(user)).as_string(connection),
    )


def _free_slot(connection: Connection, source: PostgresSource) -> Finding:
    name = source.slot_name
    row = connection.execute(
        "SELECT plugin, database = current_database(), wal_status, active FROM pg_replication_slots"
        " WHERE slot_name = %s",
        [name],
    ).fetchone()
    if row is not None:
        plugin, here, status, _ = row
        if plugin != "pgoutput" or not here:
            where = "of another database" if not here else f"with plugin {plugin!r}"
            return failed(
                "slot", f"a slot {name!r} {where} exists", f"set sources.{source.name}.slot to another name"
            )
        if status == "lost":
            return failed(
                "slot",
                f"slot {name!r} is lost: PostgreSQL removed log that it needed (max_slot_wal_keep_size)",
                "delete the connector with its slot, raise the source's `era` by one, apply, and backfill",
            )
        return passed("slot", f"slot {name!r} is there")
    used = _one(connection, "SELECT count(*) FROM pg_replication_slots")
    most = _one(connection, "SELECT current_setting('max_replication_slots')::int")
    if used < most:
        return passed("slot", f"{most - used} of {most} slots are free")
    return failed(
        "slot",
        f"all {most} replication slots are taken",
        f"drop one that nobody reads, or ALTER SYSTEM SET max_replication_slots = {most + 5} and restart",
    )


def _free_sender(connection: Connection, source: PostgresSource) -> Finding:
    most = _one(connection, "SELECT current_setting('max_wal_senders')::int")
    used = _one(connection, "SELECT count(*) FROM pg_stat_get_wal_senders()")
    mine = _one(
        connection,
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND active",
        [source.slot_name],
    )
    if used < most or mine:
        return passed("wal_senders", f"{used} of {most} WAL senders are busy")
    return failed(
        "wal_senders",
        f"all {most} WAL senders are busy",
        f"ALTER SYSTEM SET max_wal_senders = {most + 5}, then restart PostgreSQL",
    )


def _publication(connection: Connection, source: PostgresSource) -> list[Finding]:
    name = sql.Identifier(source.publication_name)
    row = connection.execute(
        "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = %s",
        [source.publication_name],
    ).fetchone()
    if row is None:
        statement = "CREATE PUBLICATION {} WITH (publish = 'insert, update, delete, truncate')"
        return [
            failed(
                "publication",
                f"publication {source.publication_name!r} does not exist",
                f"`livevec connector apply` creates it where create_publication is true; by hand: "
                f"{sql.SQL(statement).format(name).as_string(connection)}",
            )
        ]
    operations = ("insert", "update", "delete", "truncate")
    missing = [operation for operation, there in zip(operations, row, strict=True) if not there]
    present = passed("publication", f"publication {source.publication_name!r} is there")
    if missing:
        statement = "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')"
        return [
            present,
            failed(
                "publication_operations",
                f"publication {source.publication_name!r} leaves out {', '.join(missing)}",
                sql.SQL(statement).format(name).as_string(connection),
            ),
        ]
    return [present, passed("publication_operations", "the publication carries all operations")]


def _one(connection: Connection, query: str, parameters: Sequence[object] = ()) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]

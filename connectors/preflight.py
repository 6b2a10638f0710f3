"""Whether a PostgreSQL source and its topics are fit: every check that can be made before a connector runs.

Each finding that is not ok carries the statement or setting that makes it so. Nothing is changed here;
`connectors.prepare` creates what is missing where the configuration allows it.
"""

from collections.abc import Iterator, Sequence

from psycopg import sql

from connectors import slot
from connectors.definition import connector_user
from connectors.rules import Finding, failed, judged, passed
from connectors.slot import Connection
from connectors.tables import check_table
from connectors.topics import check_topics
from daemon.errors import ConnectorError
from daemon.settings import KafkaSettings, Pipeline, PostgresSource

VERSION_MIN = 150000
"""PostgreSQL 15: the first whose catalog tells a publication's columns and row filters."""
_SERVER = """
SELECT current_setting('wal_level'),
       current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots),
       current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_get_wal_senders())
"""


def check(source: PostgresSource, pipelines: Sequence[Pipeline], kafka: KafkaSettings) -> list[Finding]:
    """Check the database, the publication, every pipeline's table, and the topics; this changes nothing."""
    own = [pipeline for pipeline in pipelines if pipeline.source == source.name]
    try:
        user = connector_user(source)
        with slot.connected(source) as connection:
            findings = _check_database(connection, source, own, user)
    except ConnectorError as error:
        findings = [failed("connection", str(error), error.remedy)]
    return [*findings, *check_topics(source, own, kafka)]


def _check_database(
    connection: Connection, source: PostgresSource, pipelines: Sequence[Pipeline], user: str
) -> list[Finding]:
    version = connection.info.server_version
    shown = connection.info.parameter_status("server_version") or str(version)
    standby = connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    findings = [
        passed("connection", "PostgreSQL answers"),
        judged(
            "version",
            version >= VERSION_MIN,
            f"PostgreSQL {shown}",
            f"PostgreSQL {shown} is too old",
            f"use version {VERSION_MIN // 10000} or newer",
        ),
        judged(
            "primary",
            not standby,
            "the server is a primary",
            "the server is a standby: its snapshots do not tell which transactions are running",
            "let `dsn` name the primary (list all hosts and add target_session_attrs=read-write)",
        ),
    ]
    if not all(finding.ok for finding in findings):
        return findings
    findings += _server(connection, source, user)
    publication = list(_publication(connection, source.publication_name))
    findings += publication
    for pipeline in pipelines:
        findings += check_table(connection, source, pipeline, user, published=publication[0].ok)
    return findings


def _server(connection: Connection, source: PostgresSource, user: str) -> Iterator[Finding]:
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    level, slots_max, slots, senders_max, senders = row
    yield judged(
        "wal_level",
        level == "logical",
        "wal_level is logical",
        f"wal_level is {level!r}, so changes cannot be decoded",
        "ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL",
    )
    yield _replication_right(connection, user)
    own_slot = connection.execute(
        "SELECT plugin, database = current_database(), wal_status, active FROM pg_replication_slots"
        " WHERE slot_name = %s",
        [source.slot_name],
    ).fetchone()
    if own_slot is not None:
        yield _existing_slot(source, *own_slot[:3])
    else:
        yield judged(
            "slot",
            slots < slots_max,
            f"{slots_max - slots} of {slots_max} slots are free",
            f"all {slots_max} replication slots are taken",
            f"drop one that nobody reads, or ALTER SYSTEM SET max_replication_slots = {slots_max + 5} and restart",
        )
    yield judged(
        "wal_senders",
        senders < senders_max or (own_slot is not None and own_slot[3]),
        f"{senders} of {senders_max} WAL senders are busy",
        f"all {senders_max} WAL senders are busy",
        f"ALTER SYSTEM SET max_wal_senders = {senders_max + 5}, then restart PostgreSQL",
    )


def _replication_right(connection: Connection, user: str) -> Finding:
    row = connection.execute(
        "SELECT rolsuper OR rolreplication OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication'"
        " AND pg_has_role(r.oid, g.oid, 'member')) FROM pg_roles r WHERE rolname = %s",
        [user],
    ).fetchone()
    role = sql.Identifier(user).as_string(connection)
    if row is None:
        return failed(
            "replication_right",
            f"the connector's role {user!r} does not exist",
            f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD '...'",
        )
    return judged(
        "replication_right",
        row[0],
        f"role {user!r} may replicate",
        f"role {user!r} may not start replication",
        f"ALTER ROLE {role} REPLICATION",
    )


def _existing_slot(source: PostgresSource, plugin: str, here: bool, status: str) -> Finding:
    name = source.slot_name
    if plugin != "pgoutput" or not here:
        where = "of another database" if not here else f"with plugin {plugin!r}"
        return failed(
            "slot", f"a slot {name!r} {where} exists", f"set sources.{source.name}.slot to another name"
        )
    return judged(
        "slot",
        status != "lost",
        f"slot {name!r} is there",
        f"slot {name!r} is lost: PostgreSQL removed log that it needed (max_slot_wal_keep_size)",
        "delete the connector with its slot, raise the source's `era` by one, apply, and backfill",
    )


def _publication(connection: Connection, name: str) -> Iterator[Finding]:
    operations = ("insert", "update", "delete", "truncate")
    options = f"(publish = '{', '.join(operations)}')"
    quoted = sql.Identifier(name).as_string(connection)
    row = connection.execute(
        "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = %s", [name]
    ).fetchone()
    yield judged(
        "publication",
        row is not None,
        f"publication {name!r} is there",
        f"publication {name!r} does not exist",
        f"`livevec connector apply` creates it where create_publication is true; by hand: "
        f"CREATE PUBLICATION {quoted} WITH {options}",
    )
    if row is not None:
        missing = [operation for operation, published in zip(operations, row, strict=True) if not published]
        yield judged(
            "publication_operations",
            not missing,
            "the publication carries all operations",
            f"publication {name!r} leaves out {', '.join(missing)}",
            f"ALTER PUBLICATION {quoted} SET {options}",
        )

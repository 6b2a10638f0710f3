"""Whether one pipeline's table can be mirrored: its kind, key, identity, rights, publication and columns."""

import difflib
from collections.abc import Iterator, Sequence

from psycopg import sql

from connectors.publication import check_publication
from connectors.rules import Finding, failed, passed
from daemon.settings import Pipeline, PostgresSource
from daemon.source.postgres.catalog import (
    KEYS,
    NUMBERS,
    Column,
    Connection,
    Table,
    key_columns,
    needed_columns,
    read_table,
)

_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "c": "a composite type",
    "t": "a TOAST table",
}


def check_table(
    connection: Connection, source: PostgresSource, pipeline: Pipeline, user: str, published: bool
) -> list[Finding]:
    """All findings about one pipeline's table.

    Args:
        user: the connector's role.
        published: the publication exists, so that what it says of this table can be looked at.
    """
    table = read_table(connection, pipeline.table)
    if table is None:
        return [_absent(connection, pipeline)]
    findings = [_kind(table)]
    if not findings[0].ok:
        return findings
    key = key_columns(connection, table)
    findings += _key(connection, table, key)
    findings += [
        _identity(connection, table),
        _select_right(connection, table, user),
        _rows(connection, table),
    ]
    findings += _columns(table, pipeline, _identity_is_full(connection, table))
    if published:
        findings += check_publication(connection, source, table, [*key, *needed_columns(pipeline)])
    return findings


def _absent(connection: Connection, pipeline: Pipeline) -> Finding:
    names = connection.execute(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|information_schema)'"
    ).fetchall()
    return failed(
        "table",
        f"table {pipeline.table!r} does not exist",
        f"correct `table` of pipeline {pipeline.name!r}{_nearest(pipeline.table, [row[0] for row in names])}",
    )


def _kind(table: Table) -> Finding:
    if table.kind not in ("r", "p"):
        kind = _KINDS.get(table.kind, f"of kind {table.kind!r}")
        return failed("table", f"{table.name} is {kind}, which has no log", "name the table beneath it")
    if table.persistence != "p":
        return failed(
            "table",
            f"{table.name} is unlogged or temporary: its changes are not in the log",
            f"ALTER TABLE {table.quoted} SET LOGGED",
        )
    return passed("table", f"table {table.name} is there")


def _key(connection: Connection, table: Table, key: Sequence[str]) -> Iterator[Finding]:
    if not key:
        yield failed(
            "primary_key",
            f"table {table.name} has no primary key, so its rows cannot be told apart",
            f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (...)",
        )
        return
    row = connection.execute(
        "SELECT conname::text, condeferrable FROM pg_constraint WHERE conrelid = %s AND contype = 'p'",
        [table.oid],
    ).fetchone()
    name, deferrable = row if row is not None else ("", False)
    if deferrable:
        columns = sql.SQL(", ").join(map(sql.Identifier, key)).as_string(connection)
        yield failed(
            "primary_key",
            f"the primary key of {table.name} is deferrable: a swap of keys would end in a deleted row",
            f'ALTER TABLE {table.quoted} DROP CONSTRAINT "{name}", ADD PRIMARY KEY ({columns})',
        )
        return
    unfit = [column for column in map(table.column, key) if column and not _fit_for_key(column)]
    if unfit:
        shown = ", ".join(f"{column.name} ({column.type})" for column in unfit)
        yield failed(
            "key_type",
            f"the primary key of {table.name} has columns that cannot be looked up from their text: {shown}",
            "use a key of whole numbers, text or uuid",
        )
        return
    yield passed("primary_key", f"the primary key of {table.name} is ({', '.join(key)})")


def _fit_for_key(column: Column) -> bool:
    return not column.array and not column.scale_negative and (column.enum or column.type in KEYS)


_IDENTITIES = """
SELECT c.oid::regclass::text,
       CASE WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisprimary)
       THEN 'd' ELSE c.relreplident::text END
FROM pg_class c
WHERE c.relkind = 'r' AND (c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s) WHERE isleaf))
"""


def _identity(connection: Connection, table: Table) -> Finding:
    """With publish_via_partition_root it is the partition's own identity that counts."""
    rows = connection.execute(_IDENTITIES, {"oid": table.oid}).fetchall()
    for name, identity in rows:
        if identity not in ("d", "f"):
            shown = "NOTHING" if identity == "n" else "an index that may not be the primary key"
            return failed(
                "replica_identity",
                f"the replica identity of {name} is {shown}: deletes would not name their row",
                f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT",
            )
    return passed("replica_identity", f"the replica identity of {table.name} names the key")


def _select_right(connection: Connection, table: Table, user: str) -> Finding:
    schema = table.name.partition(".")[0]
    row = connection.execute(
        "SELECT r.rolname::text, has_schema_privilege(r.rolname, %(schema)s, 'USAGE')"
        " AND has_table_privilege(r.rolname, %(oid)s::oid, 'SELECT')"
        " FROM (SELECT rolname FROM pg_roles WHERE rolname IN (%(user)s, current_user)) r ORDER BY 2 LIMIT 1",
        {"schema": schema, "oid": table.oid, "user": user},
    ).fetchone()
    if row is None or row[1]:
        return passed("select_right", f"{table.name} may be read")
    role, schema_name = (
        sql.Identifier(row[0]).as_string(connection),
        sql.Identifier(schema).as_string(connection),
    )
    return failed(
        "select_right",
        f"role {row[0]!r} may not read {table.name}",
        f"GRANT USAGE ON SCHEMA {schema_name} TO {role}; GRANT SELECT ON {table.quoted} TO {role}",
    )


def _rows(connection: Connection, table: Table) -> Finding:
    row = connection.execute(
        "SELECT row_security_active(%s::oid), current_user::text", [table.oid]
    ).fetchone()
    assert row is not None
    if not row[0]:
        return passed("row_security", f"all rows of {table.name} are seen")
    role = sql.Identifier(row[1]).as_string(connection)
    return failed(
        "row_security",
        f"row security hides rows of {table.name} from role {row[1]!r}: they would look deleted",
        f"ALTER ROLE {role} BYPASSRLS",
    )


def _identity_is_full(connection: Connection, table: Table) -> bool:
    rows = connection.execute(_IDENTITIES, {"oid": table.oid}).fetchall()
    return all(identity == "f" for _, identity in rows)


def _columns(table: Table, pipeline: Pipeline, identity_is_full: bool) -> Iterator[Finding]:
    names = [column.name for column in table.columns]
    numeric = {field.column for field in pipeline.metadata if field.type == "numeric"}
    for name in needed_columns(pipeline):
        column = table.column(name)
        if column is None:
            yield failed(
                "column",
                f"pipeline {pipeline.name!r} uses column {name!r}, which {table.name} does not have",
                f"correct daemon.toml{_nearest(name, names)}",
            )
        elif not column.captured:
            yield failed(
                "column_type",
                f"column {name!r} of {table.name} is of type {_shown(column)}, which Debezium does not carry "
                "faithfully",
                "use another column, for instance one of type text that a trigger fills",
            )
        elif name in numeric and (column.array or column.type not in NUMBERS):
            yield failed(
                "column_type",
                f"column {name!r} of {table.name} is of type {_shown(column)} but declared numeric",
                'declare it as type = "tag", or add a column with the number (for a time: seconds since 1970)',
            )
        elif not (column.holds_placeholder or identity_is_full):
            yield failed(
                "column_type",
                f"column {name!r} of {table.name} is of type {_shown(column)}: an update that leaves alone a value "
                "stored apart (TOAST) would stop the connector",
                f"ALTER TABLE {table.quoted} REPLICA IDENTITY FULL, or use a column of another type",
            )
        else:
            yield passed("column", f"column {name!r} of {table.name} is there")


def _shown(column: Column) -> str:
    return f"{column.type}[]" if column.array else column.type


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known)[:20])}"

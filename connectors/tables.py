"""Whether one pipeline's table can be mirrored: its kind, key, identity, rights, publication and columns."""

import difflib
from collections.abc import Iterator, Sequence

from psycopg import sql

from connectors import slot
from connectors.rules import Finding, failed, judged, passed
from connectors.slot import Connection
from daemon.settings import Pipeline, PostgresSource
from daemon.source.postgres.schema import ColumnInfo, TableSchema, read_any_table
from daemon.source.postgres.values import SCALAR_TYPES

_NUMBERS = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8", "money", "oid"})
_STEADY = SCALAR_TYPES - {"timetz", "bit", "varbit"} | {"hstore", "name", "tstzrange"}
_STEADY_ELEMENTS = frozenset({"int4", "int8", "text", "varchar", "bpchar", "json", "jsonb"})
"""Types of which no value stops the connector, and an unchanged long value arrives as a placeholder.

Of the others, such as vector, float8[] or the array of an enum, an update that leaves a value alone which
PostgreSQL stores apart (TOAST) makes the task fail, unless the table's replica identity is FULL.
"""
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
    """Return all findings about one pipeline's table.

    Args:
        user: the connector's role.
        published: the publication exists, so that what it says of this table can be looked at.
    """
    table = read_any_table(connection, pipeline.table)
    if table is None:
        return [_absent(connection, pipeline)]
    findings = [_kind(table)]
    if not findings[0].ok:
        return findings
    identities = connection.execute(_IDENTITIES, {"oid": table.oid}).fetchall()
    findings += [
        _key(connection, table),
        _identity(table, identities),
        _select_right(connection, table, user),
        _rows(connection, table),
    ]
    findings += _columns(table, pipeline, all(identity == "f" for _, identity in identities))
    if published:
        findings += _published(connection, source, table, [*table.key, *_needed_columns(pipeline)])
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


def _kind(table: TableSchema) -> Finding:
    if table.kind not in ("r", "p"):
        kind = _KINDS.get(table.kind, f"of kind {table.kind!r}")
        return failed("table", f"{table.name} is {kind}, which has no log", "name the table beneath it")
    return judged(
        "table",
        table.persistence == "p",
        f"table {table.name} is there",
        f"{table.name} is unlogged or temporary: its changes are not in the log",
        f"ALTER TABLE {table.quoted} SET LOGGED",
    )


def _key(connection: Connection, table: TableSchema) -> Finding:
    if not table.key:
        return failed(
            "primary_key",
            f"table {table.name} has no primary key, so its rows cannot be told apart",
            f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (...)",
        )
    row = connection.execute(
        "SELECT conname::text, condeferrable FROM pg_constraint WHERE conrelid = %s AND contype = 'p'",
        [table.oid],
    ).fetchone()
    name, deferrable = row if row is not None else ("", False)
    if deferrable:
        columns = sql.SQL(", ").join(map(sql.Identifier, table.key)).as_string(connection)
        return failed(
            "primary_key",
            f"the primary key of {table.name} is deferrable: a swap of keys would end in a deleted row",
            f'ALTER TABLE {table.quoted} DROP CONSTRAINT "{name}", ADD PRIMARY KEY ({columns})',
        )
    columns_of_key = map(table.column, table.key)
    unfit = [column for column in columns_of_key if column.codec is None or column.codec.key_literal is None]
    if unfit:
        shown = ", ".join(f"{column.name} ({column.base.name})" for column in unfit)
        return failed(
            "key_type",
            f"the primary key of {table.name} has columns that cannot be looked up from their text: {shown}",
            "use a key of whole numbers, text or uuid",
        )
    return passed("primary_key", f"the primary key of {table.name} is ({', '.join(table.key)})")


_IDENTITIES = """
SELECT c.oid::regclass::text,
       CASE WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisprimary)
       THEN 'd' ELSE c.relreplident::text END
FROM pg_class c
WHERE c.relkind = 'r' AND (c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s) WHERE isleaf))
"""


def _identity(table: TableSchema, identities: Sequence[tuple[str, str]]) -> Finding:
    """Check the replica identities; with publish_via_partition_root it is the partition's own that counts."""
    for name, identity in identities:
        if identity not in ("d", "f"):
            shown = "NOTHING" if identity == "n" else "an index that may not be the primary key"
            return failed(
                "replica_identity",
                f"the replica identity of {name} is {shown}: deletes would not name their row",
                f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT",
            )
    return passed("replica_identity", f"the replica identity of {table.name} names the key")


def _select_right(connection: Connection, table: TableSchema, user: str) -> Finding:
    schema = table.name.partition(".")[0]
    row = connection.execute(
        "SELECT r.rolname::text, has_schema_privilege(r.rolname, %(schema)s, 'USAGE')"
        " AND has_table_privilege(r.rolname, %(oid)s::oid, 'SELECT')"
        " FROM (SELECT rolname FROM pg_roles WHERE rolname IN (%(user)s, current_user)) r ORDER BY 2 LIMIT 1",
        {"schema": schema, "oid": table.oid, "user": user},
    ).fetchone()
    if row is None or row[1]:
        return passed("select_right", f"{table.name} may be read")
    role, schema_name = (sql.Identifier(name).as_string(connection) for name in (row[0], schema))
    return failed(
        "select_right",
        f"role {row[0]!r} may not read {table.name}",
        f"GRANT USAGE ON SCHEMA {schema_name} TO {role}; GRANT SELECT ON {table.quoted} TO {role}",
    )


def _rows(connection: Connection, table: TableSchema) -> Finding:
    row = connection.execute(
        "SELECT row_security_active(%s::oid), current_user::text", [table.oid]
    ).fetchone()
    assert row is not None
    return judged(
        "row_security",
        not row[0],
        f"all rows of {table.name} are seen",
        f"row security hides rows of {table.name} from role {row[1]!r}: they would look deleted",
        f"ALTER ROLE {sql.Identifier(row[1]).as_string(connection)} BYPASSRLS",
    )


def _columns(table: TableSchema, pipeline: Pipeline, identity_is_full: bool) -> Iterator[Finding]:
    names = [column.name for column in table.columns]
    numeric = {field.column for field in pipeline.metadata if field.type == "numeric"}
    for name in _needed_columns(pipeline):
        column = table.find(name)
        if column is None:
            yield failed(
                "column",
                f"pipeline {pipeline.name!r} uses column {name!r}, which {table.name} does not have",
                f"correct daemon.toml{_nearest(name, names)}",
            )
            continue
        typed = f"column {name!r} of {table.name} is of type {column.base.name}{'[]' * column.base.array}"
        if column.codec is None:
            yield failed(
                "column_type",
                f"{typed}, which Debezium does not carry faithfully",
                "use another column, for instance one of type text that a trigger fills",
            )
        elif name in numeric and (column.base.array or column.base.name not in _NUMBERS):
            yield failed(
                "column_type",
                f"{typed} but declared numeric",
                'declare it as type = "tag", or add a column with the number (for a time: seconds since 1970)',
            )
        elif identity_is_full or _holds_placeholder(column):
            yield passed("column", f"column {name!r} of {table.name} is there")
        else:
            yield failed(
                "column_type",
                f"{typed}: an update that leaves alone a value stored apart (TOAST) would stop the connector",
                f"ALTER TABLE {table.quoted} REPLICA IDENTITY FULL, or use a column of another type",
            )


def _published(
    connection: Connection, source: PostgresSource, table: TableSchema, needed: Sequence[str]
) -> Iterator[Finding]:
    """Check what the publication says of the table."""
    publication = sql.Identifier(source.publication_name).as_string(connection)
    row = connection.execute(
        "SELECT t.attnames::text[], t.rowfilter FROM pg_publication_tables t WHERE t.pubname = %s"
        " AND format('%%I.%%I', t.schemaname, t.tablename) = %s",
        [source.publication_name, table.quoted],
    ).fetchone()
    if row is None:
        yield _not_published(connection, publication, source, table)
        return
    attributes, row_filter = set(row[0] or ()), row[1]
    remedy = f"ALTER PUBLICATION {publication} DROP TABLE {table.quoted}, then ADD TABLE {table.quoted}"
    yield passed("publication_table", f"the publication carries {table.name}")
    if row_filter is not None:
        yield failed(
            "publication_filter", f"the publication filters the rows of {table.name}: {row_filter}", remedy
        )
    missing = [name for name in needed if table.find(name) and name not in attributes]
    generated = [column for column in table.columns if column.generated and column.name in missing]
    if generated:
        yield failed(
            "publication_columns",
            f"{table.name}: generated columns are not published: {', '.join(c.name for c in generated)}",
            f"PostgreSQL 18: ALTER PUBLICATION {publication} SET (publish_generated_columns = stored), which "
            "carries STORED columns; else use the columns it is made from",
        )
    elif missing:
        yield failed(
            "publication_columns", f"the publication leaves out columns of {table.name}: {missing}", remedy
        )
    hidden = [column.name for column in table.columns if column.name not in attributes]
    domains = [column.name for column in table.columns if column.is_domain and column.base.enum]
    if hidden and domains:
        # Seen with Debezium 3.7: such a row makes it read the table's columns anew, with those that are not
        # published, and the values that follow land in the wrong columns.
        yield failed(
            "publication_columns",
            f"{table.name} has columns that are not published ({', '.join(hidden)}) beside a domain over an "
            f"enum ({', '.join(domains)}): Debezium would put values into wrong columns",
            f"publish all columns, or ALTER TABLE {table.quoted} ALTER COLUMN ... TYPE the enum itself",
        )


def _not_published(
    connection: Connection, publication: str, source: PostgresSource, table: TableSchema
) -> Finding:
    member = connection.execute(
        "SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
        " WHERE p.pubname = %s AND r.prrelid = %s",
        [source.publication_name, table.oid],
    ).fetchone()
    problem, change = f"does not carry {table.name}", f"ADD TABLE {table.quoted}"
    if member is not None:
        problem = f"names the partitions of {table.name} instead of the table"
        change = "SET (publish_via_partition_root = true)"
    return failed(
        "publication_table",
        f"publication {source.publication_name!r} {problem}",
        f"ALTER PUBLICATION {publication} {change}",
    )


def exclusions(source: PostgresSource, pipelines: Sequence[Pipeline]) -> tuple[str, ...]:
    """Return the columns, as `schema.table.column`, that no pipeline needs and that could stop the connector.

    A table with a pgvector column is the usual case: an update of another column would make the task fail.

    Raises:
        ConnectorError: PostgreSQL cannot be reached.
    """
    needed: dict[str, set[str]] = {}
    for pipeline in pipelines:
        if pipeline.source == source.name:
            needed.setdefault(pipeline.table, set()).update(_needed_columns(pipeline))
    excluded: list[str] = []
    with slot.connected(source) as connection:
        for name, columns in sorted(needed.items()):
            table = read_any_table(connection, name)
            if table is not None:
                kept = columns.union(table.key)
                excluded += [
                    f"{name}.{c.name}" for c in table.columns if not _steady(c) and c.name not in kept
                ]
    return tuple(excluded)


def _steady(column: ColumnInfo) -> bool:
    """Return whether no value stops the connector, not even one that is stored apart and unchanged."""
    if column.base.array:
        return not column.base.enum and not column.is_domain and column.base.name in _STEADY_ELEMENTS
    return column.base.enum or column.base.name in _STEADY


def _holds_placeholder(column: ColumnInfo) -> bool:
    """Return whether an unchanged value that is stored apart arrives as a placeholder; timetz is never stored so."""
    return _steady(column) or (column.base.name == "timetz" and not column.base.array)


def _needed_columns(pipeline: Pipeline) -> list[str]:
    """Return the columns that a pipeline's text and metadata name."""
    return list(dict.fromkeys([*pipeline.columns, *(field.column for field in pipeline.metadata)]))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known)[:20])}"

"""Whether one pipeline's table can be mirrored: its kind, key, identity, rights, publication and columns."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from connectors.column_types import CAPTURED, CAPTURED_ELEMENTS, KEYS, NUMBERS
from connectors.finding import Finding, failed, passed
from daemon.config import Pipeline, PostgresSource

Connection = psycopg.Connection[Any]
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "c": "a composite type",
    "t": "a TOAST table",
}


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: `type` is the name of its base type, without its domain; of arrays, the element's."""

    name: str
    type: str
    array: bool
    enum: bool
    domain: bool
    generated: str
    scale_negative: bool

    @property
    def captured(self) -> bool:
        if self.scale_negative:
            return False
        return self.enum or self.type in (CAPTURED_ELEMENTS if self.array else CAPTURED)


@dataclass(frozen=True, slots=True)
class _Table:
    oid: int
    name: str
    quoted: str
    kind: str
    persistence: str
    columns: tuple[_Column, ...]

    def column(self, name: str) -> _Column | None:
        return next((column for column in self.columns if column.name == name), None)


def check_table(
    connection: Connection, source: PostgresSource, pipeline: Pipeline, user: str, published: bool
) -> list[Finding]:
    """All findings about one pipeline's table.

    Args:
        user: the connector's role.
        published: the publication exists, so that what it says of this table can be looked at.
    """
    table = _table(connection, pipeline.table)
    if table is None:
        return [_absent(connection, pipeline)]
    findings = [_kind(table)]
    if not findings[0].ok:
        return findings
    key = _key_columns(connection, table)
    findings += _key(connection, table, key)
    findings += [
        _identity(connection, table),
        _select_right(connection, table, user),
        _rows(connection, table),
    ]
    findings += _columns(table, pipeline)
    if published:
        findings += _published(connection, source, table, [*key, *_needed(pipeline)])
    return findings


def _needed(pipeline: Pipeline) -> list[str]:
    return list(dict.fromkeys([*pipeline.columns, *(field.column for field in pipeline.metadata)]))


def _table(connection: Connection, name: str) -> _Table | None:
    schema, _, table = name.partition(".")
    row = connection.execute(
        "SELECT c.oid, format('%%I.%%I', n.nspname, c.relname), c.relkind::text, c.relpersistence::text"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        [schema, table],
    ).fetchone()
    if row is None:
        return None
    oid, quoted, kind, persistence = row
    columns = connection.execute(_COLUMNS, [oid]).fetchall()
    return _Table(oid, name, quoted, kind, persistence, tuple(_Column(*column) for column in columns))


# A domain's base type may be a domain again; an array's element likewise.
_COLUMNS = """
WITH RECURSIVE base AS (
  SELECT a.attnum, a.attname, a.attgenerated, a.atttypmod, t.oid, t.typtype, t.typbasetype, t.typtypmod,
         false AS domain
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT b.attnum, b.attname, b.attgenerated, b.typtypmod, t.oid, t.typtype, t.typbasetype, t.typtypmod, true
  FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
)
SELECT b.attname::text, coalesce(e.typname, t.typname)::text, e.oid IS NOT NULL,
       coalesce(e.typtype, t.typtype) = 'e', b.domain, b.attgenerated::text,
       t.typname = 'numeric' AND b.atttypmod >= 4 AND (b.atttypmod - 4) & 1024 <> 0
FROM base b JOIN pg_type t ON t.oid = b.oid
LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
WHERE b.typtype <> 'd' ORDER BY b.attnum
"""


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


def _kind(table: _Table) -> Finding:
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


def _key_columns(connection: Connection, table: _Table) -> list[str]:
    rows = connection.execute(
        "SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid"
        " AND a.attnum = ANY(i.indkey[:i.indnkeyatts - 1]) WHERE i.indrelid = %s AND i.indisprimary"
        " ORDER BY a.attnum",
        [table.oid],
    )
    return [row[0] for row in rows]


def _key(connection: Connection, table: _Table, key: Sequence[str]) -> Iterator[Finding]:
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


def _fit_for_key(column: _Column) -> bool:
    return not column.array and not column.scale_negative and (column.enum or column.type in KEYS)


_IDENTITIES = """
SELECT c.oid::regclass::text,
       CASE WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisprimary)
       THEN 'd' ELSE c.relreplident::text END
FROM pg_class c
WHERE c.relkind = 'r' AND (c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s) WHERE isleaf))
"""


def _identity(connection: Connection, table: _Table) -> Finding:
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


def _select_right(connection: Connection, table: _Table, user: str) -> Finding:
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


def _rows(connection: Connection, table: _Table) -> Finding:
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


def _columns(table: _Table, pipeline: Pipeline) -> Iterator[Finding]:
    names = [column.name for column in table.columns]
    numeric = {field.column for field in pipeline.metadata if field.type == "numeric"}
    for name in _needed(pipeline):
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
        else:
            yield passed("column", f"column {name!r} of {table.name} is there")


def _published(
    connection: Connection, source: PostgresSource, table: _Table, needed: Sequence[str]
) -> Iterator[Finding]:
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
    again = f"ALTER PUBLICATION {publication} DROP TABLE {table.quoted}, then ADD TABLE {table.quoted}"
    yield passed("publication_table", f"the publication carries {table.name}")
    if row_filter is not None:
        yield failed(
            "publication_filter", f"the publication filters the rows of {table.name}: {row_filter}", again
        )
    missing = [name for name in needed if table.column(name) and name not in attributes]
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
            "publication_columns", f"the publication leaves out columns of {table.name}: {missing}", again
        )
    hidden = [column.name for column in table.columns if column.name not in attributes]
    domains = [column.name for column in table.columns if column.domain and column.enum]
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
    connection: Connection, publication: str, source: PostgresSource, table: _Table
) -> Finding:
    member = connection.execute(
        "SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
        " WHERE p.pubname = %s AND r.prrelid = %s",
        [source.publication_name, table.oid],
    ).fetchone()
    if member is not None:
        return failed(
            "publication_table",
            f"publication {source.publication_name!r} names the partitions of {table.name} instead of the table",
            f"ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)",
        )
    return failed(
        "publication_table",
        f"publication {source.publication_name!r} does not carry {table.name}",
        f"ALTER PUBLICATION {publication} ADD TABLE {table.quoted}",
    )


def _shown(column: _Column) -> str:
    return f"{column.type}[]" if column.array else column.type


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known)[:20])}"

"""A table as the catalog describes it, as far as the checks of a source need it."""

from dataclasses import dataclass
from typing import Any

import psycopg

from daemon.settings import Pipeline

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Column:
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

    @property
    def steady(self) -> bool:
        """No value of it stops the connector, not even one that is stored apart and unchanged."""
        if self.array:
            return not self.enum and not self.domain and self.type in STEADY_ELEMENTS
        return self.enum or self.type in STEADY

    @property
    def holds_placeholder(self) -> bool:
        """An unchanged value that is stored apart arrives as a placeholder; timetz is never stored apart."""
        return self.steady or (self.type == "timetz" and not self.array)


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `quoted` is its name in SQL, `kind` and `persistence` are those of pg_class."""

    oid: int
    name: str
    quoted: str
    kind: str
    persistence: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


def needed_columns(pipeline: Pipeline) -> list[str]:
    """Columns that a pipeline's text and metadata name."""
    return list(dict.fromkeys([*pipeline.columns, *(field.column for field in pipeline.metadata)]))


def read_table(connection: Connection, name: str) -> Table | None:
    """The table `schema.table`; None when there is none."""
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
    return Table(oid, name, quoted, kind, persistence, tuple(Column(*column) for column in columns))


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


def key_columns(connection: Connection, table: Table) -> list[str]:
    """The primary key's columns in the index's order, which is also that of Debezium's keys."""
    rows = connection.execute(
        "SELECT a.attname::text FROM pg_index i, unnest(i.indkey[:i.indnkeyatts - 1]) WITH ORDINALITY k(attnum, place)"
        " JOIN pg_attribute a ON a.attrelid = %s AND a.attnum = k.attnum"
        " WHERE i.indrelid = a.attrelid AND i.indisprimary ORDER BY k.place",
        [table.oid],
    )
    return [row[0] for row in rows]


NUMBERS = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8", "money", "oid"})
_TEXTS = frozenset({"text", "varchar", "bpchar", "char", "citext", "uuid", "json", "jsonb"})
_ADDRESSES = frozenset({"inet", "cidr", "macaddr"})
_TIMES = frozenset({"date", "time", "timestamp", "timestamptz"})
_RANGES = frozenset({"int4range", "int8range", "numrange", "daterange", "tsrange"})

CAPTURED = frozenset(
    {*NUMBERS, *_TEXTS, *_ADDRESSES, *_TIMES, *_RANGES, "macaddr8", "ltree", "tsvector", "bool", "bytea"}
    | {"timetz", "interval", "bit", "varbit"}
)
"""A value in an envelope equals the same value read directly."""

CAPTURED_ELEMENTS = frozenset(
    {"int2", "int4", "int8", "oid", "float4", "float8", "numeric", "bool", "bytea", *_TEXTS, *_ADDRESSES}
)
"""The same of arrays, by element. Debezium shifts old dates and times in arrays by the JVM's time zone."""

STEADY = CAPTURED - {"timetz", "bit", "varbit"} | {"hstore", "name", "tstzrange"}
STEADY_ELEMENTS = frozenset({"int4", "int8", "text", "varchar", "bpchar", "json", "jsonb"})
"""Types of which no value stops the connector, and an unchanged long value arrives as a placeholder.

Of the others, such as vector, float8[] or the array of an enum, an update that leaves a value alone which
PostgreSQL stores apart (TOAST) makes the task fail, unless the table's replica identity is FULL.
"""

KEYS = frozenset(
    {
        "int2",
        "int4",
        "int8",
        "oid",
        "numeric",
        "bool",
        "bytea",
        *_TEXTS - {"json", "jsonb"},
        *_ADDRESSES,
        *_TIMES,
    }
    | {"macaddr8"}
)
"""Types whose value can be looked up from the text in a record's key. Floats have no exact text."""

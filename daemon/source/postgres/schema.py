"""The catalog: a table's columns, how each is read, its primary key, and what shows that it was changed."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, Connection, sql

from daemon.core.change import Row
from daemon.errors import StopPipeline
from daemon.source.envelope import key_text
from daemon.source.postgres.values import Codec, ColumnType, codec


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """One column of a table.

    Attributes:
        type_oid: of its declared type, which may be a domain.
        type_name: as SQL shows it, e.g. `numeric(10,2)`.
        base: the type beneath its domain.
        base_oid: of that type, which query results carry.
        base_sql: that type's quoted name without modifiers, to cast to.
        generated: empty, or how: `s` stored, `v` virtual.
    """

    name: str
    type_oid: int
    type_name: str
    base: ColumnType
    base_oid: int
    base_sql: str
    generated: str

    @property
    def is_domain(self) -> bool:
        return self.type_oid != self.base_oid

    @property
    def codec(self) -> Codec | None:
        """How its values are read; None: they cannot be made equal to those that Debezium carries."""
        return codec(self.base)


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table as it was when it was read.

    Attributes:
        quoted: its name in SQL.
        kind, persistence: those of pg_class.
        oid: another one means that the table was dropped and made anew.
        filenode: another one means that it was rewritten or truncated; None for a partitioned table.
        key: the primary key's columns in the index's order, which is also that of Debezium's keys.
        partitions: (oid, filenode) of each leaf.
        publication: oids of the publication and of what makes the table its member; empty: not published. Others
            mean that changes may be lost: while a publication is missing, PostgreSQL 18 only logs a warning.
    """

    schema: str
    table: str
    quoted: str
    kind: str
    persistence: str
    oid: int
    filenode: int | None
    columns: tuple[ColumnInfo, ...]
    key: tuple[str, ...]
    partitions: tuple[tuple[int, int], ...]
    publication: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table)

    @property
    def partitioned(self) -> bool:
        """Whether the rows are in partitions."""
        return self.kind == "p"

    def find(self, name: str) -> ColumnInfo | None:
        """Return the column of that name; None where there is none."""
        return next((column for column in self.columns if column.name == name), None)

    def column(self, name: str) -> ColumnInfo:
        """Return the column of that name.

        Raises:
            StopPipeline: there is none; names the nearest.
        """
        column = self.find(name)
        if column is not None:
            return column
        names = [column.name for column in self.columns]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"the nearest is {near[0]!r}" if near else f"it has {', '.join(names)}"
        raise StopPipeline(
            f"{self.name} has no column {name!r}: {hint}. Correct the pipeline's text or metadata"
        )

    def codec(self, name: str) -> Codec:
        """Return how the column of that name is read.

        Raises:
            StopPipeline: there is no such column, or its type cannot be read as Debezium carries it.
        """
        column = self.column(name)
        if column.codec is None:
            raise StopPipeline(
                f"column {name!r} of {self.name} is of type {column.type_name}, which cannot be read so that it "
                "equals what Debezium carries; use another column, for instance a text that a trigger fills"
            )
        return column.codec

    def normaliser(self, columns: Sequence[str]) -> Callable[[Row], Row] | None:
        """Return what makes these columns of an envelope's row equal to those of a row read here; None: they are."""
        codecs = {name: self.column(name).codec for name in columns}
        steps = {name: codec.normalise for name, codec in codecs.items() if codec and codec.normalise}
        if not steps:
            return None
        return lambda row: {**row, **{name: normalise(row[name]) for name, normalise in steps.items()}}

    def key_of(self, row: Row) -> tuple[str, ...]:
        """Return the key of a row as text, as a record's key gives it."""
        return tuple(key_text(row[column]) for column in self.key)

    def key_literals(self, keys: Sequence[tuple[str, ...]]) -> list[list[str]]:
        """Return, for each key column, the literals of all keys.

        Raises:
            StopPipeline: a key is of another shape or type than the table's.
        """
        literals: list[list[str]] = []
        for position, name in enumerate(self.key):
            literal = self.codec(name).key_literal
            if literal is None:
                raise StopPipeline(
                    f"the primary key of {self.name} has column {name!r} of type {self.column(name).type_name}, "
                    "which cannot be looked up from its text; use a key of whole numbers, text or uuid"
                )
            try:
                literals.append([literal(key[position]) for key in keys])
            except (ValueError, IndexError):
                raise StopPipeline(
                    f"a key does not fit the primary key of {self.name} ({', '.join(self.key)}): the table has "
                    "changed; start the daemon again, so that it reads the columns anew"
                ) from None
        return literals


# A domain's base type may be a domain again.
_TABLE = """
SELECT c.oid::int8, format('%%I.%%I', n.nspname, c.relname), c.relkind::text, c.relpersistence::text,
       pg_relation_filenode(c.oid)::int8,
       ARRAY(SELECT a.attname::text FROM pg_index i,
             unnest(i.indkey[:i.indnkeyatts - 1]) WITH ORDINALITY k(attnum, place) JOIN pg_attribute a
             ON a.attrelid = c.oid AND a.attnum = k.attnum
             WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY k.place),
       ARRAY(SELECT ARRAY[t.relid::oid::int8, pg_relation_filenode(t.relid)::int8] FROM pg_partition_tree(c.oid) t
             WHERE t.isleaf AND t.relid <> c.oid ORDER BY t.relid::oid::int8),
       (WITH RECURSIVE base AS (
          SELECT a.attnum, a.attname, a.attgenerated, a.atttypid,
                 format_type(a.atttypid, a.atttypmod) AS shown, a.atttypmod AS modifier,
                 t.oid, t.typtype, t.typbasetype, t.typtypmod
          FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          UNION ALL
          SELECT b.attnum, b.attname, b.attgenerated, b.atttypid, b.shown, b.typtypmod,
                 t.oid, t.typtype, t.typbasetype, t.typtypmod
          FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
        )
        SELECT json_agg(json_build_array(
                 b.attname, b.atttypid::int8, b.shown, b.attgenerated,
                 coalesce(e.typname, t.typname), e.oid IS NOT NULL, coalesce(e.typtype, t.typtype) = 'e', b.modifier,
                 t.oid::int8, format('%%I.%%I', tn.nspname, t.typname)) ORDER BY b.attnum)
        FROM base b JOIN pg_type t ON t.oid = b.oid JOIN pg_namespace tn ON tn.oid = t.typnamespace
        LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
        WHERE b.typtype <> 'd'),
       {published}
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
"""
_PUBLISHED = """
       ARRAY(SELECT unnest(ARRAY[p.oid, coalesce(r.oid, s.oid, 0)]::int8[]) FROM pg_publication p
             LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
             LEFT JOIN pg_publication_namespace s ON s.pnpubid = p.oid AND s.pnnspid = n.oid
             WHERE p.pubname = %(publication)s AND (p.puballtables OR r.oid IS NOT NULL OR s.oid IS NOT NULL))
"""


async def read_schema(connection: "AsyncConnection[Any]", table: str, publication: str) -> TableSchema:
    """Read the schema of `schema.table`.

    Raises:
        StopPipeline: there is no such table.
    """
    schema, _, name = table.partition(".")
    parameters = {"schema": schema, "table": name, "publication": publication}
    row = await (await connection.execute(_TABLE.format(published=_PUBLISHED), parameters)).fetchone()
    schema_read = None if row is None else _table(schema, name, row)
    if schema_read is None or schema_read.kind not in ("r", "p"):
        raise StopPipeline(f"table {table!r} does not exist; correct `table` of the pipeline, or create it")
    return schema_read


def read_any_table(connection: "Connection[Any]", table: str) -> TableSchema | None:
    """Read the schema of `schema.table`, be it a table or not, without its publication; None where there is none.

    This is for the checks before a source is used: they also look at servers that are too old to be published from.
    """
    schema, _, name = table.partition(".")
    query = _TABLE.format(published="ARRAY[]::int8[]")
    row = connection.execute(query, {"schema": schema, "table": name}).fetchone()
    return None if row is None else _table(schema, name, row)


def _table(schema: str, name: str, row: tuple[Any, ...]) -> TableSchema:
    oid, quoted, kind, persistence, filenode, key, leaves, columns, published = row
    return TableSchema(
        schema=schema,
        table=name,
        quoted=quoted,
        kind=kind,
        persistence=persistence,
        oid=oid,
        filenode=filenode,
        columns=tuple(_column(column) for column in columns or ()),
        key=tuple(key),
        partitions=tuple((leaf, leaf_filenode) for leaf, leaf_filenode in leaves),
        publication=tuple(published),
    )


def _column(row: list[Any]) -> ColumnInfo:
    name, oid, shown, generated, base, array, enum, modifier, base_oid, base_sql = row
    type = ColumnType(base, array, enum, modifier)
    return ColumnInfo(name, oid, shown, type, base_oid, base_sql, generated)

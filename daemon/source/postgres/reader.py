"""Reads of the source itself: rows with the snapshot they were read at, the barrier of a full backfill, anchors.

A row read here equals the row in Debezium's envelope value for value (`postgres_values`), and its version is the
reader's snapshot. Only a primary is read: a standby's snapshot does not say which transactions are running.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import AsyncCursor, sql

from daemon.core.change import Row
from daemon.core.version import Anchor, SnapshotVersion
from daemon.errors import StopPipeline
from daemon.settings import PostgresSource
from daemon.source.postgres.pool import Pool, one_row, one_value
from daemon.source.postgres.schema import TableSchema, read_schema
from daemon.source.postgres.values import Codec

_XID_MODULUS = 1 << 32
_SAMPLE_ROWS_PER_RANGE = 1_000
_SAMPLED_FROM_ROWS = 100_000
"""Smaller tables are read whole: a sample takes whole pages, and few of them cut unevenly."""


@dataclass(frozen=True, slots=True)
class SnapshotRows:
    """Rows of one table as one snapshot saw them.

    Attributes:
        rows: by column name, key columns included; a key that was asked for and is missing was absent.
        read_at_s: seconds since the epoch, before the snapshot was taken.
    """

    version: SnapshotVersion
    rows: tuple[Row, ...]
    read_at_s: float


@dataclass(frozen=True, slots=True)
class BlockingTransaction:
    """A transaction that a barrier waits for; all but `xid` may be hidden from a role without pg_monitor."""

    xid: int
    pid: int | None
    user: str | None
    application: str | None
    state: str | None
    prepared_as: str | None

    def __str__(self) -> str:
        if self.prepared_as is not None:
            return f"prepared transaction {self.prepared_as!r} (end it with COMMIT PREPARED or ROLLBACK PREPARED)"
        who = f"{self.user or '?'}/{self.application or '?'}, {self.state or 'state not shown'}"
        return f"process {self.pid} ({who}; end it with SELECT pg_terminate_backend({self.pid}))"


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which database this is: another system, or a timeline that forks below what was read, has lost history.

    Attributes:
        database_oid: tells databases of one server apart.
    """

    system_identifier: int
    timeline: int
    in_recovery: bool
    database_oid: int


class PostgresReader:
    """Reads one source over a pool of at most two connections.

    Every method raises RetryLater when PostgreSQL is away, starting or too slow, and StopPipeline when the table,
    its columns or the rights are not what they must be, or the server is a standby.
    """

    def __init__(self, source: PostgresSource) -> None:
        self.part = f"source {source.name}"
        """What the source is called in the health."""
        self._source = source
        self._pool = Pool(source)

    async def close(self) -> None:
        """Close the idle connections."""
        await self._pool.close()

    async def schema(self, table: str) -> TableSchema:
        """Read the schema of `schema.table` as it is now."""
        async with self._pool.connection() as connection:
            return await read_schema(connection, table, self._source.publication_name)

    async def reread(
        self, table: TableSchema, keys: Sequence[tuple[str, ...]], columns: Sequence[str]
    ) -> SnapshotRows:
        """Read the rows of these keys, as one snapshot sees them.

        Args:
            keys: as text, as a record's key gives them, in the order of `table.key`.
            columns: what is wanted beside the key.
        """
        literals = table.key_literals(keys)
        arrays = sql.SQL(", ").join(
            sql.SQL("%s::text[]::{}[]").format(_raw(table.column(name).base_sql)) for name in table.key
        )
        names = sql.SQL(", ").join(sql.Identifier(f"k{place}") for place in range(len(table.key)))
        condition = sql.SQL("({}) IN (SELECT {} FROM unnest({}) AS wanted({}))").format(
            _columns(table.key), names, arrays, names
        )
        read = await self._rows(table, columns, condition, sql.SQL(""), literals)
        # Equal by the type's operator is not equal by text: numeric 1.0 and 1.00, citext a and A.
        keys_asked_for = set(keys)
        return replace(read, rows=tuple(row for row in read.rows if table.key_of(row) in keys_asked_for))

    async def chunk(
        self,
        table: TableSchema,
        after: tuple[str, ...] | None,
        limit: int,
        columns: Sequence[str],
        where: str | None = None,
        until: tuple[str, ...] | None = None,
        inclusive: bool = False,
    ) -> SnapshotRows:
        """Read the next rows in the order of the primary key.

        Args:
            after: key of the row before the first; None: from the beginning.
            inclusive: begin with `after` itself.
            limit: most rows.
            columns: what is wanted beside the key.
            where: an SQL condition; trusted, it comes from whoever started the backfill.
            until: key of the last row that may be read; None: to the end.
        """
        condition, parameters = self._condition(table, after, until, where, inclusive)
        tail = sql.SQL(" ORDER BY {} LIMIT %s").format(_columns(table.key))
        return await self._rows(table, columns, condition, tail, [*parameters, limit])

    async def snapshot(self) -> SnapshotVersion:
        """Return what is visible now."""
        async with self._pool.connection() as connection:
            return self._version(await one_value(connection, "SELECT pg_current_snapshot()::text"))

    async def barrier(
        self, on_wait: Callable[[list[BlockingTransaction]], None], poll_s: float
    ) -> SnapshotVersion:
        """Wait until every transaction that was running has ended; return a snapshot that sees them all.

        Args:
            on_wait: gets what is waited for, at each look.
            poll_s: time between two looks.
        """
        begun = await self.barrier_begun()
        while not isinstance(result := await self.barrier_passed(begun), SnapshotVersion):
            on_wait(result)
            await asyncio.sleep(poll_s)
        return result

    async def barrier_begun(self) -> int:
        """Return a transaction id newer than all that run now: that of a transaction of its own, which has ended."""
        async with self._pool.connection() as connection:
            return int(await one_value(connection, "SELECT pg_current_xact_id()::text"))

    async def barrier_passed(self, begun: int) -> SnapshotVersion | list[BlockingTransaction]:
        """Return a snapshot that sees every transaction up to `begun`, or those that still run."""
        version = await self.snapshot()
        # xmin, not xmax: a change can be in the log with xid = xmax.
        return version if version.xmin > begun else await self._blocking(begun)

    async def anchor(self) -> Anchor:
        """Return a moment at which the position in the log and the next xid are both known."""
        async with self._pool.connection() as connection:
            lsn, xid = await one_row(
                connection,
                "SELECT (pg_current_wal_lsn() - '0/0')::int8, pg_snapshot_xmax(pg_current_snapshot())::text::int8",
            )
        return Anchor(self._source.era, lsn, xid)

    async def identity(self) -> SourceIdentity:
        """Read which database this is, of a standby too."""
        async with self._pool.any_connection() as connection:
            in_recovery = await one_value(connection, "SELECT pg_is_in_recovery()")
            # A primary's control file shows the timeline only after its next checkpoint, its WAL at once.
            timeline = (
                "(SELECT timeline_id FROM pg_control_checkpoint())"
                if in_recovery
                else "('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
            )
            system, number, database_oid = await one_row(
                connection,
                f"SELECT system_identifier, {timeline}, (SELECT oid::int8 FROM pg_database"
                " WHERE datname = current_database()) FROM pg_control_system()",
            )
        return SourceIdentity(system, number, in_recovery, database_oid)

    async def count_estimate(self, table: TableSchema) -> int:
        """Return about how many rows there are, from the statistics, or from its size where none were taken yet."""
        query = (
            "SELECT coalesce(sum(CASE WHEN c.reltuples < 0 THEN pg_relation_size(c.oid) / 100 ELSE c.reltuples END), 0)"
            "::int8 FROM pg_class c WHERE (c.oid = %(oid)s AND c.relkind = 'r')"
            " OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s::oid) WHERE isleaf)"
        )
        async with self._pool.connection() as connection:
            return int(await one_value(connection, query, {"oid": table.oid}))

    async def matching_estimate(
        self, table: TableSchema, where: str | None, after: tuple[str, ...] | None
    ) -> int:
        """Return about how many rows the planner expects from `chunk` with these.

        Raises:
            StopPipeline: `where` is no condition over this table.
        """
        condition, parameters = self._condition(table, after, None, where, inclusive=True)
        query = sql.SQL("EXPLAIN (FORMAT JSON) SELECT 1 FROM {} WHERE {}").format(table.identifier, condition)
        async with self._pool.connection() as connection:
            [explained] = await one_value(connection, query, parameters)
        return int(explained["Plan"]["Plan Rows"])

    async def key_ranges(self, table: TableSchema, parts: int) -> list[tuple[str, ...]]:
        """Return keys that cut the table into about equal parts, ascending, at most `parts - 1`; from a sample.

        A part is what `chunk` reads between one as `after` and the next as `until`; the last has no end.
        """
        estimate = await self.count_estimate(table)
        sampled = estimate if estimate < _SAMPLED_FROM_ROWS else parts * _SAMPLE_ROWS_PER_RANGE
        percent = min(100.0, 100.0 * sampled / max(estimate, 1)) or 100.0
        codecs = [table.codec(name) for name in table.key]
        query = sql.SQL(
            "SELECT {shown} FROM (SELECT DISTINCT ON (part) * FROM (SELECT {key}, ntile(%s) OVER (ORDER BY {key})"
            " AS part FROM {table} TABLESAMPLE SYSTEM (%s)) s ORDER BY part, {last}) s ORDER BY part"
        ).format(
            shown=_selected(table.key, codecs),
            key=_columns(table.key),
            last=sql.SQL(", ").join(sql.SQL("{} DESC").format(sql.Identifier(name)) for name in table.key),
            table=table.identifier,
        )
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query, [parts, percent])
            rows = _decoded(cursor, table, table.key, codecs)
        return [table.key_of(row) for row in rows[:-1]]

    # ---- queries

    def _condition(
        self,
        table: TableSchema,
        after: tuple[str, ...] | None,
        until: tuple[str, ...] | None,
        where: str | None,
        inclusive: bool,
    ) -> tuple[sql.Composable, list[object]]:
        conditions: list[sql.Composable] = []
        parameters: list[object] = []
        for bound, operator in ((after, ">=" if inclusive else ">"), (until, "<=")):
            if bound is not None:
                casts = sql.SQL(", ").join(
                    sql.SQL("%s::text::{}").format(_raw(table.column(name).base_sql)) for name in table.key
                )
                conditions.append(sql.SQL("({}) {} ({})").format(_columns(table.key), _raw(operator), casts))
                parameters += [literals[0] for literals in table.key_literals([bound])]
        if where is not None:
            conditions.append(sql.SQL("({})").format(_raw(where.replace("%", "%%"))))
        return (sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true")), parameters

    async def _rows(
        self,
        table: TableSchema,
        columns: Sequence[str],
        condition: sql.Composable,
        tail: sql.Composable,
        parameters: Sequence[object],
    ) -> SnapshotRows:
        """Read rows under a snapshot. The lock comes first: an ALTER TABLE that rewrites the table between snapshot
        and lock would make it look empty, since the new file holds no row that the old snapshot sees.
        """
        names = list(dict.fromkeys((*table.key, *columns)))
        codecs = [table.codec(name) for name in names]
        # ONLY: a table that inherits has a log of its own; a partitioned table is read through its partitions.
        query = sql.SQL("SELECT {} FROM {}{} WHERE {}{}").format(
            _selected(names, codecs),
            sql.SQL("" if table.partitioned else "ONLY "),
            table.identifier,
            condition,
            tail,
        )
        read_at_s = time.time()
        async with self._pool.connection() as connection:
            async with connection.pipeline():
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await connection.execute(
                    sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(table.identifier)
                )
                snapshot = await connection.execute("SELECT pg_current_snapshot()::text")
                cursor = await connection.execute(query, parameters)
                await connection.execute("COMMIT")
            taken = await snapshot.fetchone()
            assert taken is not None
            return SnapshotRows(self._version(taken[0]), _decoded(cursor, table, names, codecs), read_at_s)

    async def _blocking(self, passed: int) -> list[BlockingTransaction]:
        """Return transactions with an xid up to `passed`; a subtransaction's lock counts for its process."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT DISTINCT ON (coalesce(l.pid::text, p.gid)) l.transactionid::text::int8, l.pid,"
                " coalesce(a.usename, p.owner)::text, a.application_name, a.state, p.gid"
                " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
                " LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid"
                " WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted"
                " AND l.pid IS DISTINCT FROM pg_backend_pid()"
                " ORDER BY coalesce(l.pid::text, p.gid), age(l.transactionid) DESC"
            )
            rows = await cursor.fetchall()
        behind = [((passed - xid) % _XID_MODULUS, facts) for xid, *facts in rows]
        return [
            BlockingTransaction(passed - distance, *facts)
            for distance, facts in sorted(behind, key=lambda pair: -pair[0])
            if distance < _XID_MODULUS // 2
        ]

    def _version(self, snapshot: str) -> SnapshotVersion:
        """Parse `xmin:xmax:xip`, as pg_current_snapshot() writes it."""
        xmin, xmax, xip = snapshot.split(":")
        running = tuple(int(xid) for xid in xip.split(",")) if xip else ()
        return SnapshotVersion(self._source.era, int(xmin), int(xmax), running)


def _decoded(
    cursor: AsyncCursor[Any], table: TableSchema, names: Sequence[str], codecs: Sequence[Codec]
) -> tuple[Row, ...]:
    """Return all rows of a result. They are taken as text, past psycopg's own conversions.

    Raises:
        StopPipeline: a column is of another type than when the schema was read.
    """
    result = cursor.pgresult
    assert result is not None
    columns = list(zip(range(len(names)), names, codecs, strict=True))
    for position, name, codec in columns:
        if codec.select == "{}" and result.ftype(position) != table.column(name).base_oid:
            raise StopPipeline(
                f"column {name!r} of {table.name} has changed its type; start the daemon again, so that it reads "
                "the columns anew"
            )
    rows: list[Row] = []
    for number in range(result.ntuples):
        row: dict[str, Any] = {}
        for position, name, codec in columns:
            value = result.get_value(number, position)
            row[name] = None if value is None else codec.decode(value.decode())
        rows.append(row)
    return tuple(rows)


def _selected(names: Sequence[str], codecs: Sequence[Codec]) -> sql.Composable:
    return sql.SQL(", ").join(
        _raw(codec.select).format(sql.Identifier(name)) for name, codec in zip(names, codecs, strict=True)
    )


def _columns(names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _raw(text: str) -> sql.SQL:
    """Return SQL that was made here or read quoted from the catalog."""
    return sql.SQL(text)

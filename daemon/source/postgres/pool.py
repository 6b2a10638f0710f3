"""At most two connections to a source, opened when needed and again after a loss.

psycopg_pool is not used: it connects in the background, so that who waits for a connection learns after its whole
timeout that there was none, and the reason (a wrong password, a standby, no server) stays in its log, beside
attempts that go on by themselves. `daemon.patience` retries here, with the reason shown in the health.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.abc import Params

from daemon.errors import StopPipeline
from daemon.settings import PostgresSource
from daemon.source.postgres.failures import translated
from daemon.source.postgres.values import SESSION

Connection = AsyncConnection[Any]
CONNECTIONS_MAX = 2


class Pool:
    """Connections to a primary, in autocommit mode, with the session in which `values` holds."""

    def __init__(self, source: PostgresSource) -> None:
        self._source = source
        self._what = f"source {source.name!r}"
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS_MAX)

    async def close(self) -> None:
        """Close the idle connections; those in use are closed by who uses them."""
        while self._idle:
            await self._idle.pop().close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection of the pool; one that failed is closed, so that the next call opens another."""
        async with self._free:
            with translated(self._what):
                connection: Connection | None = None
                try:
                    async with asyncio.timeout(self._source.timeout_s * 2):
                        connection = self._idle.pop() if self._idle else await self._open_primary()
                        yield connection
                except BaseException:
                    if connection is not None:
                        await connection.close()
                    raise
                self._idle.append(connection)

    @asynccontextmanager
    async def any_connection(self) -> AsyncIterator[Connection]:
        """Open a connection of its own, also to a standby, and close it at the end."""
        with translated(self._what):
            async with asyncio.timeout(self._source.timeout_s * 2):
                connection = await self._open()
                try:
                    yield connection
                finally:
                    await connection.close()

    async def _open_primary(self) -> Connection:
        connection = await self._open()
        if await one_value(connection, "SELECT pg_is_in_recovery()"):
            await connection.close()
            raise StopPipeline(
                f"{self._what}: the server is a standby, whose snapshots do not say which transactions are running; "
                "let `dsn` name the primary (list all hosts and add target_session_attrs=read-write)"
            )
        return connection

    async def _open(self) -> Connection:
        timeout_ms = round(self._source.timeout_s * 1000)
        connection = await AsyncConnection.connect(
            self._source.dsn.get_secret_value(),
            autocommit=True,
            connect_timeout=max(2, round(self._source.timeout_s)),
            tcp_user_timeout=timeout_ms,
            application_name=f"livevec {self._source.name}",
            # A plan made before an ALTER TABLE would be refused for ever after it.
            prepare_threshold=None,
        )
        settings = {
            **SESSION,
            "statement_timeout": str(timeout_ms),
            "lock_timeout": str(timeout_ms // 2),
            "idle_in_transaction_session_timeout": str(2 * timeout_ms),
            # Rows that a policy hides would look deleted: an error instead.
            "row_security": "off",
        }
        calls = ", ".join(["set_config(%s, %s, false)"] * len(settings))
        await connection.execute(
            f"SELECT {calls}", [part for setting in settings.items() for part in setting]
        )
        return connection


async def one_row(connection: Connection, query: str | sql.Composed, parameters: Params | None = None) -> Any:
    """Return the only row of a query."""
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return row


async def one_value(
    connection: Connection, query: str | sql.Composed, parameters: Params | None = None
) -> Any:
    """Return the only value of a query."""
    return (await one_row(connection, query, parameters))[0]

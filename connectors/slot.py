"""The replication slot, as PostgreSQL shows it: the only honest sign that a connector is streaming.

Kafka Connect's own status stays RUNNING after its worker was killed; the slot's `active_pid` does not.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from daemon.errors import ConnectorError
from daemon.settings import PostgresSource

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots.

    Attributes:
        active: a walsender is reading from it now.
        lost: PostgreSQL removed log that it still needed; it is of no use any more.
        confirmed_lsn: everything before it was acknowledged; None until the first acknowledgement.
    """

    plugin: str
    active: bool
    lost: bool
    confirmed_lsn: int | None


Connection = psycopg.Connection[Any]


@contextmanager
def connected(source: PostgresSource) -> Iterator[Connection]:
    """Open a connection in autocommit mode for a while, and translate what psycopg raises meanwhile.

    Raises:
        ConnectorError: PostgreSQL cannot be reached, or refuses a query.
    """
    doing = "cannot be reached"
    try:
        with psycopg.connect(
            source.dsn.get_secret_value(),
            autocommit=True,
            connect_timeout=max(2, round(source.timeout_s)),
            application_name="livevec",
        ) as connection:
            doing = "does not answer a query"
            yield connection
    except psycopg.Error as error:
        raise ConnectorError(
            f"PostgreSQL of source {source.name!r} {doing}: {error}".strip(),
            f"check sources.{source.name}.dsn, the rights of its user, and that the server is up",
        ) from error


def read(source: PostgresSource) -> Slot | None:
    """Return the source's slot; None when there is none.

    Raises:
        ConnectorError: PostgreSQL cannot be reached.
    """
    with connected(source) as connection:
        row = connection.execute(
            "SELECT coalesce(plugin, '')::text, active, coalesce(wal_status = 'lost', false),"
            " (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = %s",
            [source.slot_name],
        ).fetchone()
    return None if row is None else Slot(*row)


def drop(source: PostgresSource, deadline_s: float) -> bool:
    """Drop the slot once its reader has let go of it; return whether there was one.

    Raises:
        ConnectorError: it is still in use after `deadline_s`, or may not be dropped.
    """
    end = time.monotonic() + deadline_s
    with connected(source) as connection:
        while True:
            try:
                return (
                    connection.execute(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                        [source.slot_name],
                    ).fetchall()
                    != []
                )
            except psycopg.errors.ObjectInUse as error:
                if time.monotonic() > end:
                    raise ConnectorError(
                        f"slot {source.slot_name!r} is still in use: {error}".strip(),
                        "stop the process that reads it, then delete again",
                    ) from error
                time.sleep(_POLL_S)
            except psycopg.errors.InsufficientPrivilege as error:
                raise ConnectorError(
                    f"slot {source.slot_name!r} cannot be dropped: {error}".strip(),
                    f"run as a role with REPLICATION: SELECT pg_drop_replication_slot('{source.slot_name}')",
                ) from error

"""Backfills of one table, started and looked at from a test."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError

from daemon.verify.differences import IndexFindings
from daemon.verify.session import opened
from tests.support.mirrored_table import MirroredTable
from workflows.backfill.contract import Target
from workflows.backfill.workflow import Backfill, BackfillOrder, BackfillResult, workflow_id
from workflows.client import connect, progress, progress_now, start
from workflows.progress import Progress

DEADLINE_S = 60.0
Handle = WorkflowHandle[Any, Any]


class Backfills:
    """The backfills of one table."""

    def __init__(self, table: MirroredTable, client: Client) -> None:
        self.table = table
        self.client = client

    @classmethod
    async def of(cls, table: MirroredTable) -> "Backfills":
        return cls(table, await connect(table.config))

    async def start(
        self,
        where: str | None = None,
        from_key: str | None = None,
        rate: float | None = None,
        version: int | None = None,
        **order: Any,
    ) -> Handle:
        target = Target(pipeline=self.table.name, version=version, where=where, from_key=from_key)
        return await start(
            self.client,
            self.table.config,
            Backfill.run,
            BackfillOrder(target=target, rate=rate, **order),
            workflow_id=workflow_id(target),
            pipeline=self.table.config.pipelines[0],
            summary="a test's",
        )

    async def run(self, **order: Any) -> BackfillResult:
        """To its end."""
        found = await (await self.start(**order)).result()
        assert isinstance(found, BackfillResult)
        return found

    async def until(self, handle: Handle, reached: Any, what: str) -> Progress:
        """Poll its progress until it is so."""
        ends_at = time.monotonic() + DEADLINE_S
        while True:
            found = await progress(self.client.get_workflow_handle(handle.id))
            if found is not None and reached(found):
                return found
            if time.monotonic() > ends_at:
                raise AssertionError(f"not within {DEADLINE_S} s: {what}; it is {found}")
            await asyncio.sleep(0.05)

    async def phase(self, handle: Handle, phase: str) -> Progress:
        return await self.until(handle, lambda found: found.phase == phase, phase)

    async def status(self, handle: Handle, status: str) -> None:
        """Poll until its latest run has that status."""
        ends_at = time.monotonic() + DEADLINE_S
        latest = self.client.get_workflow_handle(handle.id)
        while (found := (await latest.describe()).status) is not WorkflowExecutionStatus[status]:
            if time.monotonic() > ends_at:
                raise AssertionError(f"not within {DEADLINE_S} s: {status}; it is {found}")
            await asyncio.sleep(0.05)

    async def details(self, handle: Handle) -> str:
        """Current details, as Temporal's UI shows them."""
        found = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        return str(found.current_details)


async def now(backfills: "Backfills", handle: Handle) -> Progress:
    """With what the running activity has done since."""
    latest = backfills.client.get_workflow_handle(handle.id)
    found = await progress_now(latest, await latest.describe())
    assert found is not None, "no worker answers"
    return found


async def until_done(backfills: "Backfills", handle: Handle, rows: int) -> int:
    """Poll until so many rows are told to be done, also past servers and workers that are away meanwhile."""
    ends_at = time.monotonic() + 2 * DEADLINE_S
    while time.monotonic() < ends_at:
        with contextlib.suppress(RPCError, AssertionError):
            if (done := (await now(backfills, handle)).done) >= rows:
                return done
        await asyncio.sleep(0.1)
    raise AssertionError(f"not {rows} rows within {2 * DEADLINE_S} s")


@contextmanager
def editing(
    table: MirroredTable, rows: int, pause_s: float = 0.01, edits_max: float = float("inf")
) -> Iterator[None]:
    """Insert, update and delete rows all over the table, meanwhile."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def edit() -> None:
        with psycopg.connect(table.addresses.postgres_dsn, autocommit=True) as db:
            number = 0
            while number < edits_max and not stop.wait(pause_s):
                number += 1
                key = number * 37 % (rows + 100) + 1
                if number % 4 == 0:
                    db.execute(f"delete from {table.name} where id = {key}")
                else:
                    db.execute(
                        f"insert into {table.name} values ({key}, 't', 'edit {number}', 'c', 1)"
                        " on conflict (id) do update set body = excluded.body"
                    )

    def guarded() -> None:
        try:
            edit()
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


def insert(table: MirroredTable, first: int, last: int) -> None:
    table.execute(
        "insert into $T select n, 'title ' || n, 'about the number ' || n, 'c' || mod(n, 7), n / 4.0"
        f" from generate_series({first}, {last}) n"
    )


def forget(table: MirroredTable) -> None:
    """Let the index lose every document, and with them what it knew of their versions."""
    for kind in ("doc", "meta"):
        for key in table.redis.scan_iter(match=f"lv:{table.name}:1:{kind}:*", count=1000):
            table.redis.delete(key)


async def check(table: MirroredTable, *, vectors: bool = True) -> IndexFindings:
    """What `livevec verify` finds."""
    async with opened(table.config, table.config.pipelines[0], vectors=vectors) as session:
        return await session.check(lambda *_: None)

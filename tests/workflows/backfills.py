"""Backfills of one table, started and looked at from a test."""

import asyncio
import time
from typing import Any

from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle

from daemon.verify.differences import Report
from daemon.verify.session import opened
from tests.mirrored_table import MirroredTable
from workflows.activities.backfill_model import Target
from workflows.backfill import Backfill, BackfillOrder, BackfillResult, workflow_id
from workflows.client import connect, progress, start
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
        **order: Any,
    ) -> Handle:
        target = Target(pipeline=self.table.name, where=where, from_key=from_key)
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


async def check(table: MirroredTable, *, vectors: bool = True) -> Report:
    """What `livevec verify` finds."""
    async with opened(table.config, table.config.pipelines[0], vectors=vectors) as session:
        return await session.check(lambda *_: None)

"""Retries of one pipeline's dead letters, fed and looked at from a test."""

import asyncio
import time
from typing import Protocol

from temporalio.client import Client, WorkflowHandle

from daemon.settings import Config
from daemon.source.record import Coordinates
from workflows import search_attributes
from workflows.client import connect
from workflows.retry.client import RetryClient
from workflows.retry.contract import (
    Feed,
    Held,
    Letter,
    RetryEnd,
    RetryPolicy,
    RetryStart,
    RetryStatus,
    TryOutcome,
)
from workflows.retry.feeder import workflow_id
from workflows.retry.workflow import Retry

DEADLINE_S = 60.0
HASTY = RetryPolicy(
    pause_s_min=0.2,
    pause_s_max=0.4,
    attempts_max=5,
    give_up_after_s=3600.0,
    documents_max=100,
    wait_for_change=(),
)


class Mirror(Protocol):
    """Has one pipeline, of its own name."""

    name: str
    config: Config


class Retries:
    """The retry workflow of one pipeline."""

    def __init__(self, table: Mirror, client: Client) -> None:
        self.handle: WorkflowHandle[Retry, RetryEnd] = client.get_workflow_handle_for(
            Retry.run, workflow_id(table.name)
        )
        self._table = table
        self._client = client
        self._asked = RetryClient(client, table.name)

    @classmethod
    async def of(cls, table: Mirror) -> "Retries":
        return cls(table, await connect(table.config))

    async def status(self) -> RetryStatus:
        return await self.handle.query(Retry.status)

    async def held(self) -> dict[str, Held]:
        """What Temporal holds, by key."""
        return {one.letter.name: one for one in (await self._asked.state()).held}

    async def until_held(self, *keys: str) -> dict[str, Held]:
        """Wait until exactly these are held."""
        ends_at = time.monotonic() + DEADLINE_S
        while (found := await self.held()).keys() != set(keys):
            assert time.monotonic() < ends_at, f"{set(keys)} are to be held; now {found}"
            await asyncio.sleep(0.1)
        return found

    async def until_tried(self, outcome: TryOutcome) -> None:
        """Wait until a try ended so."""
        ends_at = time.monotonic() + DEADLINE_S
        while not (found := (await self.status()).totals).get(outcome):
            assert time.monotonic() < ends_at, f"a try ends as {outcome}; now {found}"
            await asyncio.sleep(0.1)

    async def until_run(self, number: int) -> str:
        """Wait for the run of that number, counted from one; answers its id."""
        ends_at = time.monotonic() + DEADLINE_S
        while True:
            runs = [
                one.run_id async for one in self._client.list_workflows(f"WorkflowId = '{self.handle.id}'")
            ]
            if len(runs) >= number:
                return runs[0]
            assert time.monotonic() < ends_at, f"run {number} begins; now {len(runs)}"
            await asyncio.sleep(0.1)

    async def feed(self, *names: str, calls_max: int = 200) -> str:
        """Tell of dead letters that Kafka does not hold; answers the run's id."""
        places = [Coordinates("nowhere", 1, number) for number, _ in enumerate(names)]
        letters = [
            Letter(name, name, "embedder_refused", "", time.time(), place, None)
            for name, place in zip(names, places, strict=True)
        ]
        handle = await self._client.start_workflow(
            Retry.run,
            RetryStart(self._table.name, HASTY, calls_max=calls_max),
            id=self.handle.id,
            task_queue=self._table.config.temporal.task_queue,
            start_signal="feed",
            start_signal_args=[Feed(tuple(letters), (), HASTY)],
            search_attributes=search_attributes.of(self._table.name, f"public.{self._table.name}"),
        )
        assert handle.first_execution_run_id is not None
        return handle.first_execution_run_id

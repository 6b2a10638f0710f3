"""What a person's commands ask and tell the retry workflow of a pipeline."""

import asyncio
from collections.abc import Callable
from typing import Any

from temporalio.client import Client, WorkflowHandle

from daemon.errors import WorkflowError
from workflows.client import NoSuchWorkflow, query, update
from workflows.retry.contract import RetryState, Round, Selection
from workflows.retry.feeder import workflow_id
from workflows.retry.workflow import Retry

_POLL_S = 0.3


class RetryClient:
    """Asks and tells one pipeline's workflow.

    Every method raises WorkflowError where Temporal or a worker is away, or where none of the selection is held.
    """

    def __init__(self, client: Client, pipeline: str) -> None:
        self.id = workflow_id(pipeline)
        self._handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(self.id)

    async def state(self) -> RetryState:
        """Return all that is held; nothing where the workflow never ran."""
        try:
            state: RetryState = await query(self._handle, Retry.held)
        except NoSuchWorkflow:
            return RetryState()
        return state

    async def try_now(self, selection: Selection) -> Round | None:
        """Have these tried at once; None: all were meant, and nothing is held."""
        round_: Round | None = await self._update(Retry.try_now, selection)
        return round_

    async def drop(self, selection: Selection) -> int:
        """Forget these; return how many."""
        return int(await self._update(Retry.drop, selection) or 0)

    async def follow(self, number: int, on_progress: Callable[[Round], None]) -> Round:
        """Wait until each document of a request was tried."""
        while True:
            round_: Round | None = await query(self._handle, Retry.round_, number)
            if round_ is None:
                raise WorkflowError(
                    f"{self.id} does not know the request any more; `--list` shows what is held"
                )
            on_progress(round_)
            if not round_.open:
                return round_
            await asyncio.sleep(_POLL_S)

    async def _update(self, name: Any, selection: Selection) -> Any:
        try:
            return await update(self._handle, name, selection)
        except NoSuchWorkflow as error:
            if selection == Selection():
                return None
            raise WorkflowError(
                f"no dead letter with {selection} is held; `livevec retry PIPELINE --list` also shows those that wait "
                "in Kafka"
            ) from error

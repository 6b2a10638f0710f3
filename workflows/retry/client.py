"""The retry workflow of a pipeline, as a person's commands speak to it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio.client import (
    Client,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError, RPCStatusCode

from daemon.errors import WorkflowError
from daemon.settings import Config
from workflows.client import reason
from workflows.retry.contract import RetryState, Round, Selection
from workflows.retry.feeder import workflow_id
from workflows.retry.workflow import Retry

_ANSWER_S = 15.0
_POLL_S = 0.3


class RetryClient:
    """Asks and tells one pipeline's workflow.

    Every method raises WorkflowError where Temporal or a worker is away.
    """

    def __init__(self, client: Client, config: Config, pipeline: str) -> None:
        self._pipeline = pipeline
        self.id = workflow_id(pipeline)
        self._handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(self.id)
        self._task_queue = config.temporal.task_queue

    async def state(self) -> RetryState:
        """All that is held; nothing where the workflow never ran or has ended."""
        return await self._query(Retry.held) or RetryState()

    async def try_now(self, selection: Selection) -> Round | None:
        """Have these tried at once; None: all were meant, and nothing is held.

        Raises:
            WorkflowError: none of them is held.
        """
        found: Round | None = await self._update(Retry.try_now, selection)
        return found

    async def drop(self, selection: Selection) -> int:
        """Forget these; answers how many.

        Raises:
            WorkflowError: none of them is held.
        """
        return int(await self._update(Retry.drop, selection) or 0)

    async def follow(self, number: int, on_progress: Callable[[Round], None]) -> Round:
        """Wait until each document of a request was tried."""
        while True:
            found: Round | None = await self._query(Retry.round_, number)
            if found is None:
                raise WorkflowError(
                    f"{self.id} does not know the request any more; `--list` shows what is held"
                )
            on_progress(found)
            if not found.open:
                return found
            await asyncio.sleep(_POLL_S)

    async def _query(self, query: Any, *arguments: object) -> Any:
        try:
            return await self._handle.query(query, *arguments, rpc_timeout=timedelta(seconds=_ANSWER_S))
        except WorkflowQueryFailedError as error:
            raise WorkflowError(f"{self.id} does not answer ({error})") from error
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise self._away(error) from error

    async def _update(self, update: Any, selection: Selection) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._handle.execute_update(update, selection)
        except WorkflowUpdateFailedError as error:
            raise WorkflowError(f"{self.id}: {reason(error)}") from error
        except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
            raise self._away(error) from error
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise self._away(error) from error
            if selection != Selection():
                raise WorkflowError(
                    f"no dead letter with {selection} is held; `livevec retry PIPELINE --list` also shows those that "
                    "wait in Kafka"
                ) from error
            return None

    def _away(self, error: BaseException) -> WorkflowError:
        said = f" ({error.message})" if isinstance(error, RPCError) else ""
        return WorkflowError(
            f"{self.id} does not answer{said}; is a `livevec worker` of the task queue {self._task_queue!r} up?"
        )

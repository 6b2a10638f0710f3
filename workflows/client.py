"""Speaks with Temporal: connects, starts a workflow, asks and tells it, and follows it to its end.

What Temporal refuses, and what a workflow fails with, is raised as WorkflowError, which says why and what to do.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes
from temporalio.exceptions import FailureError, WorkflowAlreadyStartedError
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode

from daemon.errors import WorkflowError
from daemon.settings import Config, Pipeline, TemporalSettings
from workflows import search_attributes
from workflows.codec import codec
from workflows.progress import Beat, Contract, Progress, beating

_PROGRESS_S = 2.0
_ANSWER_S = 15.0
_NO_WORKER = "no worker answers; start one: `livevec worker`"
_GONE = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)


class NoSuchWorkflow(WorkflowError):
    """No workflow of that id runs."""


def data_converter(settings: TemporalSettings) -> DataConverter:
    """Return what writes pydantic values as JSON, encrypted where a key is configured; then failures are as well."""
    encrypting = codec(settings)
    if encrypting is None:
        return pydantic_data_converter
    return dataclasses.replace(
        pydantic_data_converter,
        payload_codec=encrypting,
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )


async def connect(config: Config, runtime: Runtime | None = None) -> Client:
    """Return a client of the configured namespace; `runtime`: of the SDK, where it has its own metrics."""
    settings = config.temporal
    key = settings.api_key.get_secret_value()
    try:
        client = await Client.connect(
            settings.address,
            namespace=settings.namespace,
            data_converter=data_converter(settings),
            tls=settings.tls,
            api_key=key or None,
            runtime=runtime,
        )
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=settings.namespace), timeout=timedelta(seconds=10)
        )
    except (RuntimeError, RPCError) as error:
        raise _unreachable(error, settings) from error
    return client


def _unreachable(error: RuntimeError | RPCError, settings: TemporalSettings) -> WorkflowError:
    status = error.status if isinstance(error, RPCError) else None
    if status is RPCStatusCode.NOT_FOUND:
        return WorkflowError(
            f"Temporal at {settings.address} has no namespace {settings.namespace!r}; correct temporal.namespace, "
            f"or make it: `temporal operator namespace create {settings.namespace}`"
        )
    if status in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED):
        return WorkflowError(
            f"Temporal at {settings.address} refused this client; check temporal.api_key and temporal.tls"
        )
    reason = str(error).partition("\n")[0][:160]
    return WorkflowError(
        f"Temporal cannot be reached at {settings.address} ({reason}); is it up at temporal.address?"
    )


def ui_address(config: Config, workflow_id: str, run_id: str | None = None) -> str:
    """Return where the workflow (or one run of it) is shown in Temporal's UI."""
    settings = config.temporal
    address = (
        f"{settings.ui_url.rstrip('/')}/namespaces/{settings.namespace}/workflows/{quote(workflow_id, '')}"
    )
    return f"{address}/{quote(run_id, '')}" if run_id else address


async def start(
    client: Client,
    config: Config,
    run: Callable[[Any, Any], Any],
    argument: Contract,
    *,
    workflow_id: str,
    pipeline: Pipeline,
    summary: str,
    details: str = "",
) -> WorkflowHandle[Any, Any]:
    """Start a workflow, one at a time under its id.

    Args:
        run: the workflow's method, e.g. `Backfill.run`.
        summary: one line for the UI's list; markdown.
        details: more, for its page; markdown.
    """
    try:
        return await client.start_workflow(
            run,
            argument,
            id=workflow_id,
            task_queue=config.temporal.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            search_attributes=search_attributes.of(pipeline.name, pipeline.table),
            static_summary=summary,
            static_details=details or None,
        )
    except WorkflowAlreadyStartedError as error:
        raise WorkflowError(
            f"{workflow_id} runs already; see it with `livevec workflows show {workflow_id}`, end it with "
            f"`livevec workflows cancel {workflow_id}`"
        ) from error
    except RPCError as error:
        if "search attribute" in error.message:
            raise WorkflowError(
                f"Temporal does not know livevec's search attributes ({error.message}); `livevec worker` registers "
                "them when it starts: start one"
            ) from error
        raise WorkflowError(f"Temporal refused to start {workflow_id} ({error.message})") from error


async def query(
    handle: WorkflowHandle[Any, Any],
    name: Any,
    *arguments: object,
    result_type: type[Any] | None = None,
    timeout_s: float = _ANSWER_S,
) -> Any:
    """Return the answer of a query, by its name or its method; raise NoSuchWorkflow where it never ran."""
    try:
        return await handle.query(
            name, args=arguments, result_type=result_type, rpc_timeout=timedelta(seconds=timeout_s)
        )
    except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
        raise WorkflowError(f"{handle.id} does not answer ({error})") from error
    except RPCError as error:
        raise rpc_failure(handle.id, error) from error


async def update(handle: WorkflowHandle[Any, Any], name: Any, *arguments: object) -> Any:
    """Return the answer of an update, by its name or its method, however long it takes once it is accepted.

    It raises NoSuchWorkflow where it does not run.
    """
    try:
        started = await handle.start_update(
            name,
            args=arguments,
            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            rpc_timeout=timedelta(seconds=_ANSWER_S),
        )
        return await started.result()
    except WorkflowUpdateFailedError as error:
        raise WorkflowError(f"{handle.id}: {reason(error)}") from error
    except RPCTimeoutOrCancelledError as error:
        raise WorkflowError(f"{handle.id}: {_NO_WORKER}") from error
    except RPCError as error:
        raise rpc_failure(handle.id, error) from error


def rpc_failure(workflow_id: str, error: RPCError) -> WorkflowError:
    """Return what a refusal of Temporal means for a person who asked for that workflow."""
    if error.status is RPCStatusCode.NOT_FOUND:
        return NoSuchWorkflow(f"no workflow {workflow_id!r} runs; `livevec workflows --all` lists them")
    if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
        return WorkflowError(f"{workflow_id}: {_NO_WORKER}")
    return WorkflowError(f"{workflow_id}: Temporal refused ({error.message})")


async def progress(handle: WorkflowHandle[Any, Any]) -> Progress | None:
    """Return the answer of its `progress` query; None while no worker answers."""
    try:
        answer: Progress = await query(handle, "progress", result_type=Progress, timeout_s=_PROGRESS_S)
    except WorkflowError:
        return None
    return answer


async def progress_now(
    handle: WorkflowHandle[Any, Any], description: WorkflowExecutionDescription
) -> Progress | None:
    """Return `progress`, with what the running activity has done since it began."""
    answer = await progress(handle)
    for pending in description.raw_description.pending_activities:
        payloads = pending.heartbeat_details.payloads
        if answer is not None and len(payloads) > 1:
            _, beat = await description.data_converter.decode(payloads[:2], [object, Beat])
            return beating(answer, Beat.model_validate(beat))
    return answer


async def follow(
    handle: WorkflowHandle[Any, Any],
    on_progress: Callable[[Progress], None],
    result_type: type[Any] | None = None,
    poll_s: float = 0.5,
) -> Any:
    """Return the result of a workflow, over all its runs; show its progress meanwhile."""
    latest = handle._client.get_workflow_handle(handle.id, result_type=result_type)
    while True:
        try:
            description = await latest.describe()
        except RPCError as error:
            if error.status not in _GONE:
                raise WorkflowError(f"{handle.id} cannot be looked at ({error.message})") from error
            on_progress(Progress(phase="Temporal is away", note="the workflow goes on when it is back"))
            await asyncio.sleep(poll_s)
            continue
        if description.status not in (
            WorkflowExecutionStatus.RUNNING,
            WorkflowExecutionStatus.CONTINUED_AS_NEW,
        ):
            break
        shown = await progress_now(latest, description)
        on_progress(shown or Progress(phase="no worker answers", note="start one: `livevec worker`"))
        await asyncio.sleep(poll_s)
    return await result(latest)


async def result(handle: WorkflowHandle[Any, Any]) -> Any:
    """Return the result of a workflow that has ended."""
    try:
        return await handle.result()
    except WorkflowFailureError as error:
        raise WorkflowError(f"{handle.id}: {reason(error)}") from error
    except RPCError as error:
        raise WorkflowError(f"{handle.id}: its result cannot be read ({error.message})") from error


def reason(error: BaseException) -> str:
    """Return why a workflow failed, without the wrapping that says only that an activity did."""
    causes = [error]
    while (cause := getattr(causes[-1], "cause", None) or causes[-1].__cause__) is not None:
        causes.append(cause)
    failures = [cause for cause in causes if isinstance(cause, FailureError)]
    last = failures[-1] if failures else causes[-1]
    return last.message if isinstance(last, FailureError) else str(last)

"""`livevec workflows`: what runs in Temporal, how far it is, and holding or ending it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli import context as given
from daemon.cli.context import Json

if TYPE_CHECKING:
    from temporalio.client import Client, WorkflowExecution, WorkflowHandle

    from daemon.settings import Config

app = typer.Typer(help="Workflows: what runs, how far it is; pause, resume, throttle, cancel.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The workflow's id, as `livevec workflows` lists it.")]


@app.callback(invoke_without_command=True)
def workflows(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    as_json: Json = False,
) -> None:
    """List what runs."""
    if context.invoked_subcommand is None:
        config = given.resolved(context)
        asyncio.run(_list(config, everything, as_json))


@app.command()
def show(context: typer.Context, workflow_id: Id, as_json: Json = False) -> None:
    """Show one workflow: phase, progress, why it failed, its address in the UI."""
    asyncio.run(_show(given.resolved(context), workflow_id, as_json))


@app.command()
def follow(context: typer.Context, workflow_id: Id) -> None:
    """Follow one workflow to its end; exit status 1 where it fails. Ctrl-C leaves it running."""
    from daemon.cli import flows

    flows.follow(given.resolved(context), workflow_id)


@app.command()
def pause(context: typer.Context, workflow_id: Id, as_json: Json = False) -> None:
    """Let a workflow stop after its present step, until `resume`."""
    _tell(context, as_json, workflow_id, lambda handle: _update(handle, "pause"))


@app.command()
def resume(context: typer.Context, workflow_id: Id, as_json: Json = False) -> None:
    """Let a paused workflow go on."""
    _tell(context, as_json, workflow_id, lambda handle: _update(handle, "resume"))


@app.command()
def throttle(
    context: typer.Context,
    workflow_id: Id,
    rate: Annotated[float, typer.Argument(min=0, help="Most rows a second; 0: as many as there can be.")],
    as_json: Json = False,
) -> None:
    """Set how many rows a second a workflow may take."""
    _tell(context, as_json, workflow_id, lambda handle: _update(handle, "throttle", rate))


@app.command()
def cancel(context: typer.Context, workflow_id: Id, as_json: Json = False) -> None:
    """End a workflow after its present step; what it has done stays."""
    _tell(context, as_json, workflow_id, lambda handle: handle.cancel())


# ---- talking to Temporal


def _tell(
    context: typer.Context,
    as_json: bool,
    workflow_id: str,
    action: "Callable[[WorkflowHandle[Any, Any]], Awaitable[Any]]",
) -> None:
    config = given.resolved(context)

    async def work() -> None:
        from temporalio.service import RPCError

        from workflows.client import connect, rpc_failure

        client = await connect(config)
        try:
            await action(client.get_workflow_handle(workflow_id))
        except RPCError as error:
            raise rpc_failure(workflow_id, error) from error
        await _show(config, workflow_id, as_json, client)

    asyncio.run(work())


async def _update(handle: "WorkflowHandle[Any, Any]", name: str, *arguments: float) -> None:
    from workflows.client import update

    await update(handle, name, *arguments)


async def _list(config: "Config", everything: bool, as_json: bool) -> None:
    from daemon.cli import console
    from workflows.client import connect

    client = await connect(config)
    query = "LivevecPipeline IS NOT NULL" + ("" if everything else " AND ExecutionStatus = 'Running'")
    listed = [_content(config, execution) async for execution in client.list_workflows(query)]
    if as_json:
        console.print_json({"workflows": listed})
        return
    table = console.table("workflow", "type", "pipeline", "status", "phase", "%", "started")
    for one in listed:
        cells = (one["workflow_id"], one["type"], one["pipeline"], one["status"], one["phase"] or "")
        table.add_row(*map(console.plain, cells), str(one["percent"] or ""), _ago(one["started"]))
    if listed:
        console.out.print(table)
    else:
        console.out.print("no workflow runs" if not everything else "there are no workflows")


def _content(config: "Config", execution: "WorkflowExecution") -> dict[str, Any]:
    from workflows import search_attributes as found_by
    from workflows.client import ui_address

    attributes = execution.typed_search_attributes
    status = execution.status
    return {
        "workflow_id": execution.id,
        "run_id": execution.run_id,
        "type": execution.workflow_type,
        "pipeline": attributes.get(found_by.PIPELINE, ""),
        "table": attributes.get(found_by.TABLE, ""),
        "status": status.name.lower() if status is not None else "",
        "phase": attributes.get(found_by.PHASE),
        "percent": attributes.get(found_by.PERCENT),
        "started": execution.start_time.isoformat(),
        "ended": execution.close_time.isoformat() if execution.close_time else None,
        "ui": ui_address(config, execution.id, execution.run_id),
    }


async def _show(config: "Config", workflow_id: str, as_json: bool, client: "Client | None" = None) -> None:
    from temporalio.client import WorkflowExecutionStatus
    from temporalio.service import RPCError

    from daemon.cli import console
    from daemon.errors import WorkflowError
    from workflows.client import connect, progress_now, result, rpc_failure

    client = client or await connect(config)
    handle = client.get_workflow_handle(workflow_id)
    try:
        description = await handle.describe()
    except RPCError as error:
        raise rpc_failure(workflow_id, error) from error
    content = _content(config, description)
    progress = await progress_now(handle, description)
    content["progress"] = progress.model_dump() if progress else None
    content["result"], content["failure"] = None, None
    content["trying"] = [
        {"activity": one.activity_type.name, "attempt": one.attempt, "failure": one.last_failure.message}
        for one in description.raw_description.pending_activities
        if one.HasField("last_failure")
    ]
    if description.status is not WorkflowExecutionStatus.RUNNING:
        try:
            content["result"] = await result(handle)
        except WorkflowError as error:
            content["failure"] = str(error)
    if as_json:
        console.print_json(content)
    else:
        _print(content)


def _print(content: dict[str, Any]) -> None:
    from daemon.cli import console

    progress = content.pop("progress") or {}
    trying = content.pop("trying")
    table = console.table("", "")
    table.show_header = False
    rows = {**content, **{f"progress: {name}": value for name, value in progress.items()}}
    rows |= {f"attempt {one['attempt']} of {one['activity']}": one["failure"] for one in trying}
    for name, value in rows.items():
        if value not in (None, ""):
            table.add_row(name, console.plain(_ago(value) if name in ("started", "ended") else value))
    console.out.print(table)


def _ago(moment: str) -> str:
    from workflows.progress import duration

    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"{duration(max(0, seconds))} ago"

"""`livevec workflows`: what runs in Temporal, how far it is, and holding or ending it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError

from daemon.cli import console, flows
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.errors import WorkflowError
from daemon.settings import Config
from workflows import search_attributes
from workflows.client import connect, progress_now, result, rpc_failure, ui_address, update
from workflows.progress import duration

app = typer.Typer()
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
    _show(context, workflow_id, as_json)


@app.command()
def follow(context: typer.Context, workflow_id: Id) -> None:
    """Follow one workflow to its end; exit status 1 where it fails. Ctrl-C leaves it running."""
    flows.follow(given.resolved(context), workflow_id)


@app.command()
def pause(context: typer.Context, workflow_id: Id, as_json: Json = False) -> None:
    """Let a workflow stop after its present step, until `resume`."""
    _show(context, workflow_id, as_json, lambda handle: update(handle, "pause"))


@app.command()
def resume(context: typer.Context, workflow_id: Id, as_json: Json = False) -> None:
    """Let a paused workflow go on."""
    _show(context, workflow_id, as_json, lambda handle: update(handle, "resume"))


@app.command()
def throttle(
    context: typer.Context,
    workflow_id: Id,
    rate: Annotated[float, typer.Argument(min=0, help="Most rows a second; 0: as many as there can be.")],
    as_json: Json = False,
) -> None:
    """Set how many rows a second a workflow may take."""
    _show(context, workflow_id, as_json, lambda handle: update(handle, "throttle", rate))


@app.command()
def cancel(context: typer.Context, workflow_id: Id, as_json: Json = False) -> None:
    """End a workflow after its present step; what it has done stays."""
    _show(context, workflow_id, as_json, lambda handle: handle.cancel())


# ---- talking to Temporal


async def _list(config: Config, everything: bool, as_json: bool) -> None:
    client = await connect(config)
    query = "LivevecPipeline IS NOT NULL" + ("" if everything else " AND ExecutionStatus = 'Running'")
    contents = [_content(config, execution) async for execution in client.list_workflows(query)]
    if as_json:
        console.print_json({"workflows": contents})
        return
    table = console.table("workflow", "type", "pipeline", "status", "phase", "%", "started")
    for content in contents:
        cells = (content[name] for name in ("workflow_id", "type", "pipeline", "status"))
        figures = (content["phase"] or "", content["percent"] or "", _ago(content["started"]))
        table.add_row(*map(console.plain, (*cells, *figures)))
    if contents:
        console.out.print(table)
    else:
        console.out.print("no workflow runs" if not everything else "there are no workflows")


def _content(config: Config, execution: WorkflowExecution) -> dict[str, Any]:
    attributes = execution.typed_search_attributes
    status = execution.status
    return {
        "workflow_id": execution.id,
        "run_id": execution.run_id,
        "type": execution.workflow_type,
        "pipeline": attributes.get(search_attributes.PIPELINE, ""),
        "table": attributes.get(search_attributes.TABLE, ""),
        "status": status.name.lower() if status is not None else "",
        "phase": attributes.get(search_attributes.PHASE),
        "percent": attributes.get(search_attributes.PERCENT),
        "started": execution.start_time.isoformat(),
        "ended": execution.close_time.isoformat() if execution.close_time else None,
        "ui": ui_address(config, execution.id, execution.run_id),
    }


def _show(
    context: typer.Context,
    workflow_id: str,
    as_json: bool,
    action: Callable[[WorkflowHandle[Any, Any]], Awaitable[Any]] | None = None,
) -> None:
    """Show one workflow, after this has been done to it."""
    config = given.resolved(context)

    async def work() -> dict[str, Any]:
        client = await connect(config)
        handle = client.get_workflow_handle(workflow_id)
        try:
            if action is not None:
                await action(handle)
            description = await handle.describe()
        except RPCError as error:
            raise rpc_failure(workflow_id, error) from error
        progress = await progress_now(handle, description)
        content = _content(config, description) | {
            "progress": progress.model_dump() if progress else None,
            "result": None,
            "failure": None,
            "trying": [
                {
                    "activity": pending.activity_type.name,
                    "attempt": pending.attempt,
                    "failure": pending.last_failure.message,
                }
                for pending in description.raw_description.pending_activities
                if pending.HasField("last_failure")
            ],
        }
        if description.status is not WorkflowExecutionStatus.RUNNING:
            try:
                content["result"] = await result(handle)
            except WorkflowError as error:
                content["failure"] = str(error)
        return content

    content = asyncio.run(work())
    if as_json:
        console.print_json(content)
    else:
        _print(content)


def _print(content: dict[str, Any]) -> None:
    progress = content.pop("progress") or {}
    attempts = content.pop("trying")
    rows = {**content, **{f"progress: {name}": value for name, value in progress.items()}}
    rows |= {f"attempt {trying['attempt']} of {trying['activity']}": trying["failure"] for trying in attempts}
    console.print_fields(
        {
            name: _ago(value) if name in ("started", "ended") and value else value
            for name, value in rows.items()
        }
    )


def _ago(moment: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"{duration(max(0, seconds))} ago"

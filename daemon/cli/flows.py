"""What the commands that start a workflow have in common: start it, and follow it or say where it is to be seen."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from temporalio.client import Client, WorkflowHandle

    from daemon.cli.console import Steps
    from daemon.settings import Config
    from workflows.progress import Contract, Progress

Wait = Annotated[
    bool,
    typer.Option(
        "--wait", help="Follow it to its end; exit status 1 where it fails. Ctrl-C leaves it running."
    ),
]
EXIT_INTERRUPTED = 128 + signal.SIGINT


def launch(
    config: "Config",
    starting: "Callable[[Client], Awaitable[WorkflowHandle[Any, Any]]]",
    *,
    wait: bool,
    as_json: bool,
    result_type: "type[Contract]",
    summarize: Callable[[Any], str],
) -> None:
    """Start a workflow, then follow it to its end (`wait`), or print its id and its address in the UI.

    Args:
        starting: see `workflows.client.start`.
        summarize: returns its result in one line.

    Raises:
        WorkflowError: Temporal is away, the workflow runs already, or it failed.
    """
    started: list[str] = []

    async def work() -> None:
        from workflows.client import connect

        client = await connect(config)
        handle = await starting(client)
        started.append(handle.id)
        await _shown(config, handle, wait, as_json, result_type, summarize)

    _until_interrupted(work(), started)


def follow(config: "Config", workflow_id: str) -> None:
    """Follow a workflow that was started earlier to its end.

    Raises:
        WorkflowError: there is none, or it failed.
    """

    async def work() -> None:
        from daemon.cli import console
        from workflows.client import connect
        from workflows.client import follow as followed

        client = await connect(config)
        with console.Steps() as steps:
            result = await followed(client.get_workflow_handle(workflow_id), _news(steps, workflow_id))
            steps.news(workflow_id, "", end=True)
        console.print_json(result)

    _until_interrupted(work(), [workflow_id])


async def _shown(
    config: "Config",
    handle: "WorkflowHandle[Any, Any]",
    wait: bool,
    as_json: bool,
    result_type: "type[Contract]",
    summarize: Callable[[Any], str],
) -> None:
    from daemon.cli import console
    from workflows.client import follow as followed
    from workflows.client import ui_address

    address = ui_address(config, handle.id, handle.first_execution_run_id)
    if not wait:
        if as_json:
            console.print_json(
                {"workflow_id": handle.id, "run_id": handle.first_execution_run_id, "ui": address}
            )
        else:
            console.out.print(f"started [bold]{handle.id}[/bold]: {address}", soft_wrap=True)
            console.out.print(f"follow it with `livevec workflows follow {handle.id}`")
        return
    console.err.print(f"{handle.id}: {address}", soft_wrap=True, markup=False)
    with console.Steps() as steps:
        result = await followed(handle, _news(steps, handle.id), result_type)
        steps.news(handle.id, summarize(result), end=True)
    if as_json:
        content = {"workflow_id": handle.id, "ui": address, "result": result.model_dump(mode="json")}
        console.print_json(content)
    else:
        console.out.print(f"{console.OK} {handle.id}: {summarize(result)}")


def _news(steps: "Steps", step: str) -> "Callable[[Progress], None]":
    from workflows.progress import duration

    def tell(progress: "Progress") -> None:
        detail = progress.phase
        if progress.rate_per_s:
            detail += f", {progress.rate_per_s:,.0f} a second"
        if progress.left_s is not None:
            detail += f", {duration(progress.left_s)} left"
        if progress.note:
            detail += f"; {progress.note}"
        steps.news(step, detail, progress.done, progress.total)

    return tell


def _until_interrupted(work: Any, started: list[str]) -> None:
    from daemon.cli import console

    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        for workflow_id in started:
            console.err.print(
                f"{workflow_id} goes on. Follow it: `livevec workflows follow {workflow_id}`; "
                f"end it: `livevec workflows cancel {workflow_id}`",
                soft_wrap=True,
            )
        raise typer.Exit(EXIT_INTERRUPTED) from None

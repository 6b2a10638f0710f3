"""What the commands that start a workflow have in common: start it, and follow it or say where it is to be seen."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer
from temporalio.client import WorkflowHandle

from daemon.cli import console
from daemon.settings import Config, Pipeline
from workflows import client as temporal
from workflows.progress import Contract, Progress, duration

Wait = Annotated[
    bool,
    typer.Option(
        "--wait", help="Follow it to its end; exit status 1 where it fails. Ctrl-C leaves it running."
    ),
]
EXIT_INTERRUPTED = 128 + signal.SIGINT
Result = TypeVar("Result", bound=Contract)


def launch(
    config: Config,
    pipeline: Pipeline,
    run: Callable[[Any, Any], Any],
    order: Contract,
    *,
    workflow_id: str,
    summary: str,
    details: str,
    wait: bool,
    as_json: bool,
    result_type: type[Result],
    summarize: Callable[[Result], str],
) -> Result | None:
    """Start a workflow; follow it to its end and return its result (`wait`), or print its id and its address in the UI.

    Args:
        run: see `workflows.client.start`, also for `order`, `summary` and `details`.
        summarize: returns its result in one line.

    Raises:
        WorkflowError: Temporal is away, the workflow runs already, or it failed.
    """
    started: list[str] = []

    async def work() -> Result | None:
        client = await temporal.connect(config)
        handle = await temporal.start(
            client,
            config,
            run,
            order,
            workflow_id=workflow_id,
            pipeline=pipeline,
            summary=summary,
            details=details,
        )
        started.append(handle.id)
        if not wait:
            print_started(config, handle, f"follow it with `livevec workflows follow {handle.id}`", as_json)
            return None
        address = print_address(config, handle)
        result: Result = await _followed(handle, summarize, result_type)
        if as_json:
            content = {"workflow_id": handle.id, "ui": address, "result": result.model_dump(mode="json")}
            console.print_json(content)
        else:
            console.out.print(f"{console.OK} {handle.id}: {summarize(result)}")
        return result

    return _until_interrupted(work(), started)


def follow(config: Config, workflow_id: str) -> None:
    """Follow a workflow that was started earlier to its end.

    Raises:
        WorkflowError: there is none, or it failed.
    """

    async def work() -> None:
        client = await temporal.connect(config)
        console.print_json(await _followed(client.get_workflow_handle(workflow_id), lambda _: ""))

    _until_interrupted(work(), [workflow_id])


def print_started(config: Config, handle: WorkflowHandle[Any, Any], hint: str, as_json: bool) -> None:
    """Print the id of a workflow that goes on by itself, its address in the UI, and how to see more of it."""
    address = temporal.ui_address(config, handle.id, handle.first_execution_run_id)
    if as_json:
        console.print_json({"workflow_id": handle.id, "run_id": handle.first_execution_run_id, "ui": address})
        return
    console.out.print(f"started [bold]{handle.id}[/bold]: {address}", soft_wrap=True)
    console.out.print(hint)


def print_address(config: Config, handle: WorkflowHandle[Any, Any]) -> str:
    """Print where a workflow that is followed is shown in the UI; return that address."""
    address = temporal.ui_address(config, handle.id, handle.first_execution_run_id)
    console.err.print(f"{handle.id}: {address}", soft_wrap=True, markup=False)
    return address


async def _followed(
    handle: WorkflowHandle[Any, Any], summarize: Callable[[Any], str], result_type: type[Any] | None = None
) -> Any:
    def show(progress: Progress) -> None:
        detail = progress.phase
        if progress.rate_per_s:
            detail += f", {progress.rate_per_s:,.0f} a second"
        if progress.left_s is not None:
            detail += f", {duration(progress.left_s)} left"
        if progress.note:
            detail += f"; {progress.note}"
        steps.news(handle.id, detail, progress.done, progress.total)

    with console.Steps() as steps:
        result = await temporal.follow(handle, show, result_type)
        steps.news(handle.id, summarize(result), end=True)
    return result


def _until_interrupted(work: Coroutine[Any, Any, Result | None], started: list[str]) -> Result | None:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        for workflow_id in started:
            console.err.print(
                f"{workflow_id} goes on. Follow it: `livevec workflows follow {workflow_id}`; "
                f"end it: `livevec workflows cancel {workflow_id}`",
                soft_wrap=True,
            )
        raise typer.Exit(EXIT_INTERRUPTED) from None

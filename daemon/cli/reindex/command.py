"""`livevec reindex`: another version of an index, made beside the one that readers see, and given to them at once."""

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from daemon.cli import context as given
from daemon.cli import flows
from daemon.cli.context import Json
from daemon.cli.reindex import follow
from daemon.embedding.embedder import EmbeddingSpace
from daemon.errors import ConfigError, WorkflowError
from daemon.index.connection import connect
from daemon.index.registry import Versions, wanted
from daemon.settings import Config, Pipeline
from workflows import client as temporal
from workflows.reindex.contract import Approval, Changes, ReindexOrder, Rollback, workflow_id
from workflows.reindex.workflow import Reindex

_START = "start"


class _StartsByDefault(TyperGroup):
    """`livevec reindex PIPELINE` is `livevec reindex start PIPELINE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_START, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_StartsByDefault, no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of the pipeline.")]


@app.command()
def start(
    context: typer.Context,
    pipeline: Name,
    model: Annotated[str | None, typer.Option(help="Its name at the embedding provider.")] = None,
    dimension: Annotated[
        int | None, typer.Option(min=1, help="Of the model's vectors. [default: what the model says]")
    ] = None,
    m: Annotated[int | None, typer.Option("--m", help="HNSW: edges of a node.")] = None,
    ef_construction: Annotated[int | None, typer.Option(help="HNSW: candidates when inserting.")] = None,
    metric: Annotated[str | None, typer.Option(help="cosine, l2 or ip.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="FLOAT32, FLOAT16 or BFLOAT16.")] = None,
    template: Annotated[str | None, typer.Option(help="Text to embed: '{title}. {body}'.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Approve it by itself if the gate passes.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where nothing would differ.")] = False,
    grace: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds that one can roll back. [default: reindex.grace_s of the worker]"),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Most rows a second.")] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Follow it until readers are given the new index, or a person is asked; exit status 1 where it fails.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make another version of the index of PIPELINE: as daemon.toml asks for, or as the options say.

    Needs a worker and a running daemon. Readers see nothing of it until it is whole, measured and approved.
    """
    config = given.resolved(context)
    settings = config.pipeline(pipeline)
    changes = Changes(
        model=model,
        dimension=dimension,
        m=m,
        ef_construction=ef_construction,
        metric=metric,
        type=type_,
        text=template,
    )
    if changes == Changes():
        changes = _configured(config, settings)
    if not force:
        asyncio.run(_refuse_the_same(config, settings, changes))
    order = ReindexOrder(pipeline=pipeline, changes=changes, auto=auto, force=force, grace_s=grace, rate=rate)
    asyncio.run(_start(config, settings, order, wait, as_json))


@app.command()
def approve(
    context: typer.Context,
    pipeline: Name,
    force: Annotated[bool, typer.Option("--force", help="Though the gate fails.")] = False,
    as_json: Json = False,
) -> None:
    """Give the new version to readers; returns when they see it."""
    _show(context, pipeline, as_json, "approve", Approval(force=force))


@app.command()
def reject(context: typer.Context, pipeline: Name, as_json: Json = False) -> None:
    """Give the new version up, before readers see it; what there is of it is removed."""
    _show(context, pipeline, as_json, "reject")


@app.command()
def rollback(
    context: typer.Context,
    pipeline: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Though the old version may lack changes; then reconcile it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give readers the old version again, in the grace period; the new one is removed."""
    _show(context, pipeline, as_json, "rollback", Rollback(force=force))


@app.command()
def finish(context: typer.Context, pipeline: Name, as_json: Json = False) -> None:
    """End the grace period now: the old version is removed."""
    _show(context, pipeline, as_json, "finish")


@app.command()
def status(context: typer.Context, pipeline: Name, as_json: Json = False) -> None:
    """Show the versions of an index, and how far a reindex is: its gate, and answers of both side by side."""
    _show(context, pipeline, as_json)


# ---- what is asked for


def _configured(config: Config, pipeline: Pipeline) -> Changes:
    """Return what daemon.toml asks for."""
    space = EmbeddingSpace(config.embedding.model, config.embedding.dimension, 0, "")
    return Changes.model_validate(wanted(pipeline, space), from_attributes=True)


async def _refuse_the_same(config: Config, pipeline: Pipeline, changes: Changes) -> None:
    async with aclosing(connect(config.redis)) as client:
        active = (await Versions(client, pipeline.name).known()).version()
    if not active.differences(changes.applied(active)):
        raise ConfigError(
            f"the index of {pipeline.name!r} is as it is asked for (version {active.number}): nothing would differ. "
            "Say what shall, with --model, --m, --type, --template, .. or in daemon.toml; --force builds it anew"
        )


# ---- talking to Temporal


async def _start(config: Config, pipeline: Pipeline, order: ReindexOrder, wait: bool, as_json: bool) -> None:
    client = await temporal.connect(config)
    changes = ", ".join(
        f"{name} {value}" for name, value in order.changes.model_dump(exclude_none=True).items()
    )
    handle = await temporal.start(
        client,
        config,
        Reindex.run,
        order,
        workflow_id=workflow_id(pipeline.name),
        pipeline=pipeline,
        summary=f"Reindex of {pipeline.name}",
        details=(
            f"Makes another version of the index `{pipeline.name}` beside the one that readers see ({changes}), "
            "measures it, and gives it to them at once. Updates: `approve`, `reject`, `rollback`, `finish`."
        ),
    )
    if wait:
        await follow.follow(config, pipeline, client, handle, as_json)
    else:
        hint = f"see it with `livevec reindex status {pipeline.name}`"
        flows.print_started(config, handle, hint, as_json)


def _show(
    context: typer.Context, pipeline: str, as_json: bool, update: str | None = None, *arguments: Any
) -> None:
    """Show the versions and the latest reindex, after this update of it."""
    config = given.resolved(context)
    settings = config.pipeline(pipeline)

    async def work() -> None:
        client = await temporal.connect(config)
        if update is not None:
            handle = client.get_workflow_handle(workflow_id(pipeline))
            try:
                await temporal.update(handle, update, *arguments)
            except temporal.NoSuchWorkflow as error:
                raise WorkflowError(
                    f"no reindex of {pipeline!r} runs; `livevec reindex {pipeline}` begins one"
                ) from error
        await follow.show(config, settings, client, as_json)

    asyncio.run(work())

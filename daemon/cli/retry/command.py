"""`livevec retry`: dead letters of a pipeline: try them again now, list, show and drop them."""

import asyncio
from typing import Annotated

import typer

from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.cli.retry import listing
from daemon.errors import ConfigError
from daemon.settings import Config
from workflows.client import connect, ui_address
from workflows.retry.client import RetryClient
from workflows.retry.contract import Round, Selection

_FAILED = frozenset({"refused", "gone", "too_old"})


def retry(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    error: Annotated[
        str | None, typer.Option("--error", metavar="CLASS", help="Only those of this reason.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Only this document id.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until each was tried; exit status 1 if one was refused again.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List them instead; also without Temporal.")] = False,
    show: Annotated[
        str | None, typer.Option("--show", metavar="KEY", help="Show one instead; also without Temporal.")
    ] = None,
    drop: Annotated[
        str | None, typer.Option("--drop", metavar="KEY", help="Give one up for good instead.")
    ] = None,
    drop_all: Annotated[
        bool, typer.Option("--drop-all", help="Give all up for good instead, or those of --error.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try dead letters again now, whatever their pauses; the row is read again where it comes from.

    Needs a worker (`livevec worker`), which also tries them by itself (`retry_dead_letters` in daemon.toml).
    """
    config = given.resolved(context)
    config.pipeline(pipeline)
    if sum((list_, show is not None, drop is not None, drop_all)) > 1:
        raise ConfigError("--list, --show, --drop and --drop-all exclude each other")
    if show is not None:
        listing.show(config, pipeline, show, as_json)
    elif list_:
        listing.list_(config, pipeline, error, key, as_json)
    elif drop is not None or drop_all:
        asyncio.run(_drop(config, pipeline, drop, error, as_json))
    else:
        asyncio.run(_try_now(config, pipeline, key, error, wait, as_json))


async def _try_now(
    config: Config, pipeline: str, key: str | None, reason: str | None, wait: bool, as_json: bool
) -> None:
    client = RetryClient(await connect(config), pipeline)
    round_ = await client.try_now(Selection(key, reason))
    address = ui_address(config, client.id)
    if round_ is None:
        if as_json:
            console.print_json({"workflow_id": client.id, "asked": 0, "outcomes": {}})
        else:
            console.out.print(f"no dead letter of {pipeline} is held; `--list` shows those not taken yet")
        return
    if wait:
        with console.Steps() as steps:
            step = f"try {round_.asked:,} again"
            round_ = await client.follow(
                round_.number, lambda now: steps.news(step, "", now.asked - now.open, now.asked)
            )
            steps.news(step, _summary(round_), end=True)
    if as_json:
        counts = {"asked": round_.asked, "outcomes": round_.outcomes}
        console.print_json({"workflow_id": client.id, "ui": address, **counts})
    elif wait:
        console.out.print(f"{console.BAD if _failed(round_) else console.OK} {pipeline}: {_summary(round_)}")
    else:
        console.out.print(f"{round_.asked:,} of {pipeline} are tried now: {address}", soft_wrap=True)
    if wait and _failed(round_):
        raise typer.Exit(1)


async def _drop(config: Config, pipeline: str, key: str | None, reason: str | None, as_json: bool) -> None:
    client = RetryClient(await connect(config), pipeline)
    dropped = await client.drop(Selection(key, reason))
    if as_json:
        console.print_json({"workflow_id": client.id, "dropped": dropped})
    else:
        console.out.print(f"{dropped:,} of {pipeline} dropped")


def _failed(round_: Round) -> bool:
    return any(outcome in _FAILED for outcome in round_.outcomes)


def _summary(round_: Round) -> str:
    return ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in round_.outcomes.items())

"""`livevec backfill`: reads a table again and brings its index up to date, durably, beside the live changes."""

from typing import Annotated

import typer

from daemon.cli import context as given
from daemon.cli import flows
from daemon.cli.context import Json
from workflows.backfill.contract import Target
from workflows.backfill.workflow import Backfill, BackfillOrder, BackfillResult, workflow_id


def backfill(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    where: Annotated[
        str | None, typer.Option(help="An SQL condition: only these rows; then orphans are not removed.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Most rows a second.")] = None,
    from_key: Annotated[
        str | None,
        typer.Option("--from", help="Begin with this document id; then orphans are not removed."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Of the index. [default: the one that readers see]")
    ] = None,
    wait: flows.Wait = False,
    as_json: Json = False,
) -> None:
    """Read the table of a pipeline and bring its index up to date with it; a full one also removes orphans.

    Needs a worker (`livevec worker`). Live changes go on, and win where they are newer.
    """
    config = given.resolved(context)
    settings = config.pipeline(pipeline)
    target = Target(pipeline=pipeline, version=version, where=where, from_key=from_key)
    part = "".join((f" where {where}" if where else "", f" from {from_key}" if from_key else ""))
    flows.launch(
        config,
        settings,
        Backfill.run,
        BackfillOrder(target=target, rate=rate),
        workflow_id=workflow_id(target),
        summary=f"Backfill of {settings.table} into {pipeline}",
        details=(
            f"Reads `{settings.table}`{part} in key ranges and brings the index `{pipeline}` up to date with it, "
            "beside the live changes. Signals: `pause`, `resume`, `throttle` (rows a second)."
        ),
        wait=wait,
        as_json=as_json,
        result_type=BackfillResult,
        summarize=_summary,
    )


def _summary(result: BackfillResult) -> str:
    counts = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(result.outcomes.items())
    )
    swept = "" if result.swept is None else f"; {result.swept:,} orphans and old markers removed"
    note = f"; {result.note}" if result.note else ""
    return f"{result.rows:,} rows" + (f" ({counts})" if counts else "") + swept + note

"""`livevec reconcile`: compares tables with their indexes and mends what differs, durably, once or on a schedule."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from daemon.cli import console, flows
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.errors import ConfigError
from daemon.settings import Config, Pipeline
from workflows.client import connect
from workflows.reconcile import schedules
from workflows.reconcile.contract import Subject
from workflows.reconcile.schedules import Scheduled
from workflows.reconcile.workflow import Reconcile, Reconciled, ReconcileOrder, workflow_id


def reconcile(
    context: typer.Context,
    pipeline: Annotated[str | None, typer.Argument(help="Name of the pipeline; --list takes all.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs.")] = False,
    vectors: Annotated[
        bool,
        typer.Option("--vectors", help="Also embed the stored texts again and compare the stored vectors."),
    ] = False,
    version: Annotated[
        int | None, typer.Option(help="Of the index. [default: the one that readers see]")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Most rows a second.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="Repeat it: an interval (6h), a cron expression ('0 3 * * *'), @daily."),
    ] = None,
    unschedule: Annotated[bool, typer.Option("--unschedule", help="End its schedule.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the schedules.")] = False,
    wait: flows.Wait = False,
    as_json: Json = False,
) -> None:
    """Compare a table with its index and show what differs; with --wait, exit status 1 where anything is left.

    Needs a worker (`livevec worker`). Live changes go on, and are no differences.
    """
    if sum((schedule is not None, unschedule, listed)) > 1:
        raise ConfigError("--schedule, --unschedule and --list are three commands; give one of them")
    config = given.resolved(context)
    if listed:
        asyncio.run(_list(config, given.pipelines(config, pipeline), as_json))
        return
    if pipeline is None:
        names = ", ".join(defined.name for defined in config.pipelines)
        raise ConfigError(f"name the pipeline; defined: {names}")
    settings = config.pipeline(pipeline)
    subject = Subject(pipeline=pipeline, version=version, repair=repair, vectors=vectors)
    order = ReconcileOrder(subject=subject, rate=rate)
    if unschedule:
        asyncio.run(_unschedule(config, settings, as_json))
    elif schedule is not None:
        asyncio.run(_schedule(config, settings, schedule, order, as_json))
    else:
        _run(config, settings, order, wait, as_json)


<<<<<<< HEAD
def _run(config: "Config", pipeline: "Pipeline", order: "ReconcileOrder", wait: bool, as_json: bool) -> None:
    from daemon.cli import flows
    from workflows import client as temporal
    from workflows.reconcile.contract import Reconciled
    from workflows.reconcile.workflow import Reconcile, workflow_id

    async def start(client: "Client") -> "WorkflowHandle[Any, Any]":
        return await temporal.start(
            client,
            config,
            Reconcile.run,
            order,
            workflow_id=workflow_id(order.subject),
            pipeline=pipeline,
            summary=f"Reconcile of {pipeline.table} with {pipeline.name}",
            details=(
                f"Compares `{pipeline.table}` with the index `{pipeline.name}` by key range"
                + (" and mends what differs" if order.subject.repair else "")
                + ", beside the live changes. Signals: `pause`, `resume`, `throttle` (rows a second)."
            ),
        )

    results: list[Reconciled] = []

    def summarize(result: Reconciled) -> str:
        results.append(result)
        return _summary(result)

    flows.launch(config, start, wait=wait, as_json=as_json, result_type=Reconciled, summarize=summarize)
    if results and not results[-1].ok:
=======
def _run(config: Config, pipeline: Pipeline, order: ReconcileOrder, wait: bool, as_json: bool) -> None:
    result = flows.launch(
        config,
        pipeline,
        Reconcile.run,
        order,
        workflow_id=workflow_id(order.subject),
        summary=f"Reconcile of {pipeline.table} with {pipeline.name}",
        details=(
            f"Compares `{pipeline.table}` with the index `{pipeline.name}` by key range"
            + (" and mends what differs" if order.subject.repair else "")
            + ", beside the live changes. Signals: `pause`, `resume`, `throttle` (rows a second)."
        ),
        wait=wait,
        as_json=as_json,
        result_type=Reconciled,
        summarize=_summary,
    )
    if result is not None and not result.ok:
>>>>>>> main
        if not as_json:
            _show_left(result)
        raise typer.Exit(1)


def _summary(result: Reconciled) -> str:
    tally = result.tally
    words = [f"{tally.rows:,} rows, {tally.documents:,} documents"]
    words += [f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(tally.found.items())]
    if not tally.found:
        words.append("nothing differs")
    elif result.repair:
        words.append(f"{sum(tally.left.values()):,} left after the repair" if tally.left else "all mended")
    if result.backfilled:
        words.append(f"backfilled because of {', '.join(result.reasons)}")
    return "; ".join(words)


def _show_left(result: Reconciled) -> None:
    table = console.table("difference", "documents", "for example")
    for name, count in sorted(result.tally.left.items()):
        examples = ", ".join(result.tally.examples.get(name, ()))
        table.add_row(name.replace("_", " "), f"{count:,}", console.plain(examples))
    if result.tally.left:
        console.out.print(table)
    if result.reasons and not result.backfilled:
        console.out.print(f"a reconcile is due: {', '.join(result.reasons)}")
    if not result.repair:
        console.out.print(f"mend it with `livevec reconcile {result.pipeline} --repair`")


# ---- schedules


async def _schedule(
    config: Config, pipeline: Pipeline, when: str, order: ReconcileOrder, as_json: bool
) -> None:
    schedules.parsed(when, pipeline.name)  # a mistake in it is told before Temporal is asked
    client = await connect(config)
    await schedules.put(client, config, pipeline, when, order)
    _print([await schedules.scheduled(client, pipeline.name)], as_json)


async def _unschedule(config: Config, pipeline: Pipeline, as_json: bool) -> None:
    removed = await schedules.remove(await connect(config), pipeline.name)
    if as_json:
        console.print_json({"pipeline": pipeline.name, "removed": removed})
        return
    console.out.print(f"{pipeline.name}: " + ("schedule ended" if removed else "there was no schedule"))
    if pipeline.reconcile_every_s:
        console.out.print(
            "the next start of `livevec worker` makes the one of daemon.toml; reconcile_every_s = 0 keeps it off"
        )


async def _list(config: Config, pipelines: list[Pipeline], as_json: bool) -> None:
    client = await connect(config)
    _print([await schedules.scheduled(client, pipeline.name) for pipeline in pipelines], as_json)


def _print(scheduled: list[Scheduled | None], as_json: bool) -> None:
    present = [schedule for schedule in scheduled if schedule is not None]
    if as_json:
        contents = [
            asdict(schedule) | {"next_at": schedule.next_at.isoformat() if schedule.next_at else None}
            for schedule in present
        ]
        console.print_json({"schedules": contents})
        return
    table = console.table("pipeline", "when", "repair", "next", "runs", "skipped")
    for schedule in present:
        next_at = "paused" if schedule.paused else ""
        if schedule.next_at:
            next_at = f"{schedule.next_at:%Y-%m-%d %H:%M} UTC"
        repair = "yes" if schedule.repair else "no"
        cells = (schedule.pipeline, schedule.when, repair, next_at, schedule.runs, schedule.skipped)
        table.add_row(*map(console.plain, cells))
    if present:
        console.out.print(table)
    else:
        console.out.print("no reconcile is scheduled; `livevec reconcile PIPELINE --schedule 6h` makes one")

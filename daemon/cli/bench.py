"""`livevec bench`: measurements on a running stack."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli import context as given
from daemon.cli.context import Json

if TYPE_CHECKING:
    from daemon.bench.report import LatencyReport

TOKENS = 14
app = typer.Typer(help="Measure on a running stack.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure on a running stack."""


@app.command()
def latency(
    context: typer.Context,
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="Inserts a second.")] = 100.0,
    rows: Annotated[
        int, typer.Option(min=50, max=1_000_000, help="Rows for each system; up to 200 of them warm it up.")
    ] = 2_000,
    floor: Annotated[
        bool, typer.Option("--floor", help="Also measure the barest loop that does the job, taking turns.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=3, max=500, help="Tokens of a text, about.")] = TOKENS,
    as_json: Json = False,
) -> None:
    """Measure commit to searchable: insert rows one by one, each its own commit, at a steady rate.

    Makes tables, connector, slot and topics named livevec_bench, runs a daemon of its own on them, and removes
    all of it at the end. Let nothing else use the stack meanwhile.
    """
    from daemon.bench.latency import measure
    from daemon.bench.load import rows_of
    from daemon.bench.report import latency_report
    from daemon.cli import console
    from daemon.cli.bench_steps import running
    from daemon.cli.stack import reporter
    from deploy.local.artifacts import default_cache
    from deploy.local.corpus import texts

    config = given.resolved(context)
    with console.Steps() as steps:
        entries = texts(default_cache(), reporter(steps))
        load = rows_of((entry.body for entry in entries), tokens, rows)
        with running(config, steps, floor=floor) as systems:
            found = measure(
                systems, load, rate, lambda what, done, total: steps.news("measure", what, done, total)
            )
            steps.news("measure", "done", end=True)
    report = latency_report(rate, rows, found["livevec"], found.get("floor"))
    if as_json:
        console.print_json(asdict(report))
    else:
        _show(report)


def _show(report: "LatencyReport") -> None:
    from daemon.cli import console

    title = f"commit to searchable, {report.livevec_ms.count:,} rows at {report.rate:g}/s, ms"
    table = console.table("", "p50", "p95", "p99", "max")
    for name, found in (("livevec", report.livevec_ms), ("floor", report.floor_ms)):
        if found is not None:
            table.add_row(name, *(f"{value:.1f}" for value in (found.p50, found.p95, found.p99, found.max)))
    if report.ratio is not None:
        table.add_row("ratio", f"{report.ratio.p50:.2f}", "", f"{report.ratio.p99:.2f}", "")
    for stage, part in report.stages_ms.items():
        table.add_row(f"  {stage}", *(f"{value:.1f}" for value in (part.p50, part.p95, part.p99)), "")
    console.out.print(console.titled(title, table))

"""`livevec bench`: measurements on a running stack."""

from contextlib import ExitStack
from typing import Annotated

import typer

from daemon.bench import ceiling
from daemon.bench.latency import MeasuredSystem, measure, warm_up_rows
from daemon.bench.report import (
    LatencyReport,
    LatencyReports,
    ThroughputReport,
    latency_report,
    throughput_report,
)
from daemon.bench.throughput import measure_copy
from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.bench.setting import FLOOR, NAME
from daemon.cli.bench.steps import floor_running, livevec_running, load_rows, prepared, progress
from daemon.cli.context import Json

TOKENS = 14
Tokens = Annotated[int, typer.Option(min=3, max=500, help="Tokens of a text, about.")]

app = typer.Typer(no_args_is_help=True)


@app.command()
def latency(
    context: typer.Context,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.1,
            max=100_000,
            help="Inserts a second; given several times, the rates are measured one after another.",
            show_default="100",
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            min=50, max=1_000_000, help="Rows for each system and rate; up to 200 of them warm it up."
        ),
    ] = 2_000,
    floor: Annotated[
        bool,
        typer.Option(
            "--floor", help="Also measure the barest loop that does the job, in turns with livevec."
        ),
    ] = False,
    tokens: Tokens = TOKENS,
    as_json: Json = False,
) -> None:
    """Measure commit to searchable: insert rows one by one, each in its own commit, at a steady rate.

    Makes tables, a connector, a slot and topics named livevec_bench, runs a daemon of its own on them, and removes
    all of it at the end. Let nothing else use the stack meanwhile. Several rates: --json prints {"rates": [..]}.
    In a checkout, `python -m tests.bench plot` draws what --json printed.
    """
    config = given.resolved(context)
    rates = rate or [100.0]
    reports = []
    with console.Steps() as steps:
        load = load_rows(steps, tokens, rows * len(rates))
        names = (NAME, FLOOR) if floor else (NAME,)
        with prepared(config, steps, names) as bench, ExitStack() as started:
            systems: list[MeasuredSystem] = [started.enter_context(livevec_running(bench, steps))]
            if floor:
                systems.append(started.enter_context(floor_running(bench, steps)))
            for number, rows_per_s in enumerate(rates):
                counted = measure(systems, load[number * rows :][:rows], rows_per_s, progress(steps))
                reports.append(latency_report(rows_per_s, rows, counted["livevec"], counted.get("floor")))
                steps.news("measure", f"{rows_per_s:g}/s done", end=True)
    if as_json:
        console.print_json(reports[0] if len(reports) == 1 else LatencyReports(reports))
    else:
        for report in reports:
            _show_latency(report)


@app.command()
def throughput(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=50, max=1_000_000, help="Rows of the COPY.")] = 5_000,
    tokens: Tokens = TOKENS,
    as_json: Json = False,
) -> None:
    """Measure one COPY, until its last row is searchable: livevec, the barest loop, then the embedder alone.

    They run one after another, each with the machine to itself. Makes and removes what `bench latency` does.
    """
    config = given.resolved(context)
    warm_up = warm_up_rows(rows)
    with console.Steps() as steps:
        load = load_rows(steps, tokens, warm_up + rows)
        on_progress = progress(steps)
        with prepared(config, steps, (NAME, FLOOR)) as bench:
            with livevec_running(bench, steps) as livevec:
                measure_copy(livevec, load[:warm_up], on_progress)
                ours = measure_copy(livevec, load[warm_up:], on_progress)
            with floor_running(bench, steps) as floor:
                measure_copy(floor, load[:warm_up], on_progress)
                theirs = measure_copy(floor, load[warm_up:], on_progress)
            steps.news("measure", "done", end=True)
            with steps.step("measure the embedder alone"):
                texts = [row.text for row in load]
                alone = ceiling.texts_per_s(config.embedding, texts[:warm_up], texts[warm_up:])
    report = throughput_report(tokens, ours, theirs, alone)
    if as_json:
        console.print_json(report)
    else:
        _show_throughput(report)


def _show_latency(report: LatencyReport) -> None:
    title = f"commit to searchable, {report.livevec_ms.count:,} rows at {report.rate:g}/s, ms"
    table = console.table("", "p50", "p95", "p99", "max")
    for name, part in (("livevec", report.livevec_ms), ("floor", report.floor_ms)):
        if part is not None:
            table.add_row(name, *part.figures())
    if report.ratio is not None:
        table.add_row("ratio", f"{report.ratio.p50:.2f}", "", f"{report.ratio.p99:.2f}", "")
    for stage, share in report.stages_ms.items():
        table.add_row(f"  {stage}", *(f"{value:.1f}" for value in (share.p50, share.p95, share.p99)), "")
    console.out.print(console.titled(title, table))


def _show_throughput(report: ThroughputReport) -> None:
    title = f"one COPY of {report.rows:,} rows of about {report.tokens} tokens"
    table = console.table("", "texts/s", "livevec is")
    table.add_row("livevec", f"{report.texts_per_s:,.0f}", "")
    table.add_row("floor", f"{report.floor_texts_per_s:,.0f}", f"{report.floor_ratio:.2f} x")
    table.add_row("embedder alone", f"{report.ceiling_texts_per_s:,.0f}", f"{report.ratio:.2f} x")
    table.add_row("daemon's CPU", f"{report.daemon_cpu_ms_per_change:.3f} ms a change", "")
    console.out.print(console.titled(title, table))

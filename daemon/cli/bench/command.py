"""`livevec bench`: measurements on a running stack."""

from typing import Annotated

import typer

from daemon.cli import context as given
from daemon.cli.bench import long as bench_long
from daemon.cli.bench import mixed as bench_mixed
from daemon.cli.bench.setting import TOKENS, Plot, Tokens
from daemon.cli.context import Json

app = typer.Typer(help="Measure on a running stack.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure on a running stack."""


@app.command()
def latency(
    context: typer.Context,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.1,
            max=100_000,
            help="Inserts a second; given several times, one after another. [default: 100]",
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            min=50, max=1_000_000, help="Rows for each system and rate; up to 200 of them warm it up."
        ),
    ] = 2_000,
    floor: Annotated[
        bool, typer.Option("--floor", help="Also measure the barest loop that does the job, taking turns.")
    ] = False,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure commit to searchable: insert rows one by one, each its own commit, at a steady rate.

    Makes tables, connector, slot and topics named livevec_bench, runs a daemon of its own on them, and removes
    all of it at the end. Let nothing else use the stack meanwhile. Several rates: --json gives {"rates": [...]}.
    """
    from daemon.bench import plots
    from daemon.bench.latency import measure
    from daemon.bench.report import LatencyReports, latency_report
    from daemon.cli import console
    from daemon.cli.bench import tables as bench_tables
    from daemon.cli.bench.steps import load_rows, progress, running

    plots.check(plot)
    config = given.resolved(context)
    rates = rate or [100.0]
    reports = []
    with console.Steps() as steps:
        load = load_rows(steps, tokens, rows * len(rates))
        with running(config, steps, floor=floor) as systems:
            for number, one in enumerate(rates):
                found = measure(systems, load[number * rows :][:rows], one, progress(steps))
                reports.append(latency_report(one, rows, found["livevec"], found.get("floor")))
                steps.news("measure", f"{one:g}/s done", end=True)
    if plot is not None:
        plots.latency(plot, reports)
    if as_json:
        console.print_json(reports[0] if len(reports) == 1 else LatencyReports(reports))
    else:
        for report in reports:
            bench_tables.latency(report)


@app.command()
def throughput(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=50, max=1_000_000, help="Rows of the COPY.")] = 5_000,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure one COPY, until its last row is searchable: livevec, the barest loop, then the embedder alone.

    One after another, each with the machine to itself. Makes and removes what `bench latency` does.
    """
    from daemon.bench import ceiling, plots
    from daemon.bench.latency import warm_up_rows
    from daemon.bench.report import throughput_report
    from daemon.bench.throughput import measure_copy
    from daemon.cli import console
    from daemon.cli.bench import tables as bench_tables
    from daemon.cli.bench.setting import FLOOR, NAME
    from daemon.cli.bench.steps import floor_running, livevec_running, load_rows, prepared, progress

    plots.check(plot)
    config = given.resolved(context)
    warm_up = warm_up_rows(rows)
    with console.Steps() as steps:
        load = load_rows(steps, tokens, warm_up + rows)
        news = progress(steps)
        with prepared(config, steps, (NAME, FLOOR)) as bench:
            with livevec_running(bench, steps) as livevec:
                measure_copy(livevec, load[:warm_up], news)
                ours = measure_copy(livevec, load[warm_up:], news)
            with floor_running(bench, steps) as floor:
                measure_copy(floor, load[:warm_up], news)
                theirs = measure_copy(floor, load[warm_up:], news)
            steps.news("measure", "done", end=True)
            with steps.step("measure the embedder alone"):
                bodies = [row.text for row in load]
                alone = ceiling.texts_per_s(config.embedding, bodies[:warm_up], bodies[warm_up:])
    report = throughput_report(tokens, ours, theirs, alone)
    if plot is not None:
        plots.throughput(plot, report)
    if as_json:
        console.print_json(report)
    else:
        bench_tables.throughput(report)


@app.command()
def skip(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=50, max=1_000_000, help="Rows of the table.")] = 5_000,
    as_json: Json = False,
) -> None:
    """Measure changes that change nothing: one UPDATE of all rows to what they are; and the version rule's cost.

    Makes and removes what `bench latency` does.
    """
    from daemon.bench.guard import guard_us_per_write
    from daemon.bench.report import skip_report
    from daemon.bench.throughput import measure_copy, measure_unchanged
    from daemon.cli import console
    from daemon.cli.bench import tables as bench_tables
    from daemon.cli.bench.steps import livevec_running, load_rows, prepared, progress

    config = given.resolved(context)
    with console.Steps() as steps:
        load = load_rows(steps, TOKENS, rows)
        news = progress(steps)
        with prepared(config, steps) as bench:
            with livevec_running(bench, steps) as livevec:
                measure_copy(livevec, load, news)
                skipped = measure_unchanged(livevec, rows, news)
            steps.news("measure", "done", end=True)
            with steps.step("measure the version rule"):
                url = config.redis.url.get_secret_value()
                guard_us = guard_us_per_write(url, config.embedding.dimension, load[0].text)
    report = skip_report(skipped, guard_us)
    if as_json:
        console.print_json(report)
    else:
        bench_tables.skip(report)


bench_long.register(app)
bench_mixed.register(app)

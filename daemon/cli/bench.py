"""`livevec bench`: measurements on a running stack."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli import context as given
from daemon.cli.context import Json

if TYPE_CHECKING:
    from daemon.bench.latency import OnProgress
    from daemon.bench.report import LatencyReport, SkipReport, ThroughputReport
    from daemon.cli.console import Steps

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


@app.command()
def throughput(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=50, max=1_000_000, help="Rows of the COPY.")] = 5_000,
    tokens: Annotated[int, typer.Option(min=3, max=500, help="Tokens of a text, about.")] = TOKENS,
    as_json: Json = False,
) -> None:
    """Measure one COPY, until its last row is searchable: livevec, the barest loop, then the embedder alone.

    One after another, each with the machine to itself. Makes and removes what `bench latency` does.
    """
    from daemon.bench import ceiling
    from daemon.bench.bulk import measure_copy
    from daemon.bench.latency import warm_up_rows
    from daemon.bench.load import rows_of
    from daemon.bench.report import throughput_report
    from daemon.cli import console
    from daemon.cli.bench_steps import floor_running, livevec_running, prepared
    from daemon.cli.stack import reporter
    from deploy.local.artifacts import default_cache
    from deploy.local.corpus import texts

    config = given.resolved(context)
    warm_up = warm_up_rows(rows)
    with console.Steps() as steps:
        entries = texts(default_cache(), reporter(steps))
        load = rows_of((entry.body for entry in entries), tokens, warm_up + rows)
        news = _progress(steps)
        with prepared(config, steps, floor=True) as bench:
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
    if as_json:
        console.print_json(report)
    else:
        _show_throughput(report)


@app.command()
def skip(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=50, max=1_000_000, help="Rows of the table.")] = 5_000,
    as_json: Json = False,
) -> None:
    """Measure changes that change nothing: one UPDATE of all rows to what they are; and the version rule's cost.

    Makes and removes what `bench latency` does.
    """
    from daemon.bench.bulk import measure_copy, measure_unchanged
    from daemon.bench.guard import guard_us_per_write
    from daemon.bench.load import rows_of
    from daemon.bench.report import skip_report
    from daemon.cli import console
    from daemon.cli.bench_steps import livevec_running, prepared
    from daemon.cli.stack import reporter
    from deploy.local.artifacts import default_cache
    from deploy.local.corpus import texts

    config = given.resolved(context)
    with console.Steps() as steps:
        entries = texts(default_cache(), reporter(steps))
        load = rows_of((entry.body for entry in entries), TOKENS, rows)
        news = _progress(steps)
        with prepared(config, steps, floor=False) as bench:
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
        _show_skip(report)


def _progress(steps: "Steps") -> "OnProgress":
    return lambda what, done, total: steps.news("measure", what, done, total)


def _show_throughput(report: "ThroughputReport") -> None:
    from daemon.cli import console

    title = f"one COPY of {report.rows:,} rows of about {report.tokens} tokens"
    table = console.table("", "texts/s", "livevec is")
    table.add_row("livevec", f"{report.texts_per_s:,.0f}", "")
    table.add_row("floor", f"{report.floor_texts_per_s:,.0f}", f"{report.floor_ratio:.2f} x")
    table.add_row("embedder alone", f"{report.ceiling_texts_per_s:,.0f}", f"{report.ratio:.2f} x")
    table.add_row("daemon's CPU", f"{report.daemon_cpu_ms_per_change:.3f} ms a change", "")
    console.out.print(console.titled(title, table))


def _show_skip(report: "SkipReport") -> None:
    from daemon.cli import console

    table = console.table("", "")
    table.add_row("changes/s", f"{report.changes_per_s:,.0f}")
    table.add_row("daemon's CPU", f"{report.daemon_cpu_ms_per_change:.3f} ms a change")
    table.add_row("changes/s on one core", f"{report.changes_per_s_per_core:,.0f}")
    table.add_row("version rule", f"{report.guard_us_per_write:.1f} us a write more than a plain HSET")
    console.out.print(console.titled(f"one UPDATE of {report.rows:,} rows that changes nothing", table))


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

"""`python -m tests.bench`: the project's own measurements on a running stack, and plots of any measurement."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.bench.throughput import measure_copy
from daemon.cli import context as given
from daemon.cli.app import ConfigPath, main
from daemon.cli.bench.command import TOKENS, Tokens
from daemon.cli.bench.steps import load_rows, prepared, progress
from daemon.cli.console import Steps, print_json
from daemon.cli.context import Json
from tests.bench import mixed_run, plots, tables
from tests.bench.lag import fill, lag_report, second_record, watch
from tests.bench.policies import (
    SEED,
    TABLES,
    LoadPlan,
    PoliciesReport,
    daemon_config,
    policy_report,
    random_arrivals,
    replay,
)
from tests.bench.running import SENTENCES, lost, observed
from tests.bench.skip import guard_us_per_write, measure_unchanged, skip_report
from tests.bench.slow_embedder import slow_embedder_running
from tests.bench.soak import soak as run_soak
from tests.bench.soak import soak_report

_WARM_UP_S = 1.5
_SECONDS_AROUND = 30.0

app = typer.Typer(
    name="python -m tests.bench",
    help="Measure on a running stack, and plot what was measured.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Also draw the result there: SVG, or PNG where the name ends in .png."),
]


@app.callback()
def start(context: typer.Context, config: ConfigPath = None) -> None:
    context.obj = config


@app.command()
def skip(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=50, max=1_000_000, help="Rows of the table.")] = 5_000,
    as_json: Json = False,
) -> None:
    """Measure changes that change nothing: one UPDATE of all rows to what they are; and the version rule's cost.

    Makes and removes what `livevec bench latency` does.
    """
    config = given.resolved(context)
    with Steps() as steps:
        load = load_rows(steps, TOKENS, rows)
        on_progress = progress(steps)
        with prepared(config, steps) as bench:
            with observed(bench, steps) as livevec:
                measure_copy(livevec, load, on_progress)
                skipped = measure_unchanged(livevec, rows, on_progress)
            steps.news("measure", "done", end=True)
            with steps.step("measure the version rule"):
                url = config.redis.url.get_secret_value()
                guard_us = guard_us_per_write(url, config.embedding.dimension, load[0].text)
    _show(skip_report(skipped, guard_us), as_json)


@app.command()
def policies(
    context: typer.Context,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="Inserts a second, on average.")] = 100.0,
    slow_factor: Annotated[
        float,
        typer.Option(min=1, max=1_000, help="How many times as long the embedder takes while it is slow."),
    ] = 10.0,
    slow_s: Annotated[
        float, typer.Option(min=0.5, max=3_600, help="Seconds for which the embedder is slow.")
    ] = 30.0,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, max=36_000, help="Length of the load.", show_default="30 more than --slow-s"),
    ] = None,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Compare the batching policies: the same arrivals for each, and an embedder that is slow in the middle.

    While it is slow it answers one request after another, each in --slow-factor times its time. Each policy has a
    daemon, a table and an index of its own, one after another. Makes and removes what `livevec bench latency` does.
    """
    plots.check(plot)
    config = given.resolved(context)
    length_s = seconds or slow_s + _SECONDS_AROUND
    if length_s < slow_s + 1:
        raise typer.BadParameter(
            f"must be at least {slow_s + 1:g}: 1 more than --slow-s", param_hint="--seconds"
        )
    target_ms = config.batching.target_ms
    warm_up = round(_WARM_UP_S * rate)
    reports = {}
    with Steps() as steps:
        rows = load_rows(steps, tokens, warm_up + round(rate * length_s))
        plan = LoadPlan(random_arrivals(rows[warm_up:], rate, SEED), length_s, slow_s, slow_factor)
        with (
            prepared(config, steps, tuple(TABLES.values())) as bench,
            slow_embedder_running(bench, steps) as embedder,
        ):
            for policy in TABLES:
                own = daemon_config(bench.setting, policy, embedder.address)
                with observed(bench, steps, own) as livevec:
                    run = replay(policy, livevec, embedder.slow_down, rows[:warm_up], plan, progress(steps))
                    steps.news("measure", policy, end=True)
                    reports[policy] = policy_report(run, target_ms / 1000, lost(config, livevec))
    report = PoliciesReport(rate, length_s, slow_factor, slow_s, target_ms, tokens, **reports)
    _show(report, as_json, plot)


@app.command()
def soak(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(min=0.05, max=10_080, help="Length of the load.")] = 10.0,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="Statements a second.")] = 50.0,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Insert, update and delete for minutes: latency, memory and queue over time; then compare index and table.

    The exit status is 1 where a change was lost. Makes and removes what `livevec bench latency` does.
    """
    plots.check(plot)
    config = given.resolved(context)
    seconds = 60 * minutes
    with Steps() as steps:
        texts = [row.text for row in load_rows(steps, tokens, SENTENCES)]
        with prepared(config, steps) as bench, observed(bench, steps) as livevec:
            run = run_soak(livevec, texts, rate, seconds, progress(steps))
            steps.news("measure", "done", end=True)
            with steps.step("compare the index with the table"):
                lost_changes = lost(config, livevec)
    _show(soak_report(seconds, rate, config.batching.target_ms, run, lost_changes), as_json, plot)
    if lost_changes:
        raise typer.Exit(1)


@app.command()
def lag(
    context: typer.Context,
    changes: Annotated[int, typer.Option(min=100, max=100_000_000, help="Changes that wait.")] = 1_000_000,
    seconds: Annotated[
        float, typer.Option(min=1, max=36_000, help="Longest time for which the daemon is watched.")
    ] = 60.0,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure the daemon's memory while it catches up with many changes that wait in the topic.

    They are copies of one that the connector wrote, with ids and texts of their own; the daemon need not finish.
    Makes and removes what `livevec bench latency` does.
    """
    plots.check(plot)
    config = given.resolved(context)
    kafka = {**config.kafka.client, "bootstrap.servers": config.kafka.bootstrap_servers}
    with Steps() as steps:
        rows = load_rows(steps, tokens, SENTENCES)
        with prepared(config, steps) as bench:
            topic = config.topic(bench.setting.config.pipelines[0])
            for row in rows[:2]:
                bench.tables[0].copy([row])
            template = second_record(kafka, topic)
            fill(kafka, topic, template, [row.text for row in rows], changes, progress(steps))
            steps.news("measure", "filled", end=True)
            with observed(bench, steps) as livevec:
                done, samples = watch(livevec, changes, seconds, progress(steps))
                steps.news("measure", "done", end=True)
    report = lag_report(changes, tokens, len(template.key) + len(template.value), done, samples)
    _show(report, as_json, plot)


@app.command()
def mixed(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=500, max=1_000_000, help="Rows of the backfill.")] = 10_000,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="Live inserts a second.")] = 50.0,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure live changes beside a backfill at full speed, and the backfill beside live changes.

    The rows are backfilled three times into an index that was emptied before: alone, beside live inserts, alone
    again. Starts a worker of its own; makes and removes what `livevec bench latency` does.
    """
    plots.check(plot)
    config = given.resolved(context)
    with Steps() as steps:
        report = mixed_run.measure(config, steps, rows, rate, tokens)
    _show(report, as_json, plot)


@app.command()
def plot(
    result: Annotated[
        Path, typer.Argument(help="What a measurement, also `livevec bench`, printed with --json.")
    ],
    out: Annotated[Path, typer.Argument(help="The file to draw: SVG, or PNG where the name ends in .png.")],
) -> None:
    """Draw the result of a measurement."""
    plots.check(out)
    plots.draw(out, plots.read(result))


def _show(report: tables.Printable, as_json: bool, plot: Path | None = None) -> None:
    if plot is not None:
        plots.draw(plot, report)
    if as_json:
        print_json(report)
    else:
        tables.show(report)


if __name__ == "__main__":
    main(app)

"""`livevec bench policies`, `soak`, `lag`: measurements that last, and what they are like over time."""

from typing import Annotated

import typer

from daemon.cli import context as given
from daemon.cli.bench.setting import TOKENS, Plot, Tokens
from daemon.cli.context import Json

_WARM_UP_S = 1.5
_SECONDS_AROUND = 30.0


def register(app: typer.Typer) -> None:
    for command in (policies, soak, lag):
        app.command()(command)


def policies(
    context: typer.Context,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="Inserts a second, on average.")] = 100.0,
    slow_factor: Annotated[
        float, typer.Option(min=1, max=1_000, help="How many times as long the embedder takes while slow.")
    ] = 10.0,
    slow_s: Annotated[float, typer.Option(min=0.5, max=3_600, help="How long it is slow.")] = 30.0,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, max=36_000, help="Length of the load. [default: 30 more than --slow-s]"),
    ] = None,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Compare the batching policies: the same arrivals for each, and an embedder that is slow in the middle.

    While it is slow it answers one request after another, each in so many times its time. Each policy has a
    daemon, a table and an index of its own, one after another. Makes and removes what `bench latency` does.
    """
    from daemon.bench import plots
    from daemon.bench.load import random_arrivals
    from daemon.bench.policies import SEED, Plan, policy_report, replay
    from daemon.bench.report import PoliciesReport
    from daemon.cli import console
    from daemon.cli.bench import tables as bench_tables
    from daemon.cli.bench.setting import POLICIES, Tuning
    from daemon.cli.bench.steps import (
        livevec_running,
        load_rows,
        lost,
        prepared,
        progress,
        slow_embedder_running,
    )

    plots.check(plot)
    config = given.resolved(context)
    length_s = seconds or slow_s + _SECONDS_AROUND
    if length_s < slow_s + 1:
        raise typer.BadParameter(
            f"must be at least {slow_s + 1:g}: 1 more than --slow-s", param_hint="--seconds"
        )
    target_ms = config.batching.target_ms
    warm_up = round(_WARM_UP_S * rate)
    runs, reports = [], {}
    with console.Steps() as steps:
        rows = load_rows(steps, tokens, warm_up + round(rate * length_s))
        plan = Plan(random_arrivals(rows[warm_up:], rate, SEED), length_s, slow_s, slow_factor)
        with (
            prepared(config, steps, tuple(POLICIES.values())) as bench,
            slow_embedder_running(bench, steps) as embedder,
        ):
            for policy, name in POLICIES.items():
                with livevec_running(bench, steps, name, Tuning(policy, embedder.address)) as livevec:
                    run = replay(policy, livevec, embedder.slow_down, rows[:warm_up], plan, progress(steps))
                    steps.news("measure", "done", end=True)
                    runs.append(run)
                    reports[policy] = policy_report(run, target_ms / 1000, lost(config, livevec))
    report = PoliciesReport(rate, length_s, slow_factor, slow_s, target_ms, tokens, **reports)
    if plot is not None:
        plots.policies(plot, runs, target_ms)
    if as_json:
        console.print_json(report)
    else:
        bench_tables.policies(report)


def soak(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(min=0.05, max=10_080, help="How long.")] = 10.0,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="Statements a second.")] = 50.0,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Insert, update and delete for minutes: latency, memory and queue over time; then compare index and table.

    Exit status 1 where a change was lost. Makes and removes what `bench latency` does.
    """
    from daemon.bench import plots
    from daemon.bench.report import soak_report
    from daemon.bench.soak import soak as run_soak
    from daemon.cli import console
    from daemon.cli.bench import tables as bench_tables
    from daemon.cli.bench.steps import SENTENCES, livevec_running, load_rows, lost, prepared, progress

    plots.check(plot)
    config = given.resolved(context)
    seconds = 60 * minutes
    with console.Steps() as steps:
        texts = [row.text for row in load_rows(steps, tokens, SENTENCES)]
        with prepared(config, steps) as bench, livevec_running(bench, steps) as livevec:
            run = run_soak(livevec, texts, rate, seconds, progress(steps))
            steps.news("measure", "done", end=True)
            with steps.step("compare the index with the table"):
                missed = lost(config, livevec)
    report = soak_report(seconds, rate, run, missed)
    if plot is not None:
        plots.soak(plot, report, config.batching.target_ms)
    if as_json:
        console.print_json(report)
    else:
        bench_tables.soak(report)
    if missed:
        raise typer.Exit(1)


def lag(
    context: typer.Context,
    changes: Annotated[int, typer.Option(min=100, max=100_000_000, help="Changes that wait.")] = 1_000_000,
    seconds: Annotated[float, typer.Option(min=1, max=36_000, help="Longest look at the daemon.")] = 60.0,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure the daemon's memory while it catches up with many changes that wait in the topic.

    They are copies of one that the connector wrote, with ids and texts of their own; the daemon need not finish.
    Makes and removes what `bench latency` does.
    """
    from daemon.bench import plots
    from daemon.bench.lag import fill, second_record, watch
    from daemon.bench.report import lag_report
    from daemon.cli import console
    from daemon.cli.bench import tables as bench_tables
    from daemon.cli.bench.steps import SENTENCES, livevec_running, load_rows, prepared, progress

    plots.check(plot)
    config = given.resolved(context)
    kafka = {**config.kafka.client, "bootstrap.servers": config.kafka.bootstrap_servers}
    with console.Steps() as steps:
        rows = load_rows(steps, tokens, SENTENCES)
        with prepared(config, steps) as bench:
            topic = config.topic(bench.setting.pipelines[0])
            for row in rows[:2]:
                bench.tables[0].copy([row])
            template = second_record(kafka, topic)
            fill(kafka, topic, template, [row.text for row in rows], changes, progress(steps))
            steps.news("measure", "filled", end=True)
            with livevec_running(bench, steps) as livevec:
                done, samples = watch(livevec, changes, seconds, progress(steps))
                steps.news("measure", "done", end=True)
    report = lag_report(changes, tokens, len(template.key) + len(template.value), done, samples)
    if plot is not None:
        plots.lag(plot, report)
    if as_json:
        console.print_json(report)
    else:
        bench_tables.lag(report)

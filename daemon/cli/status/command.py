"""`livevec status`: the health of every part, lag and freshness."""

import asyncio

import typer

from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.cli.status.probes import Freshness, StatusReport, look


def status(context: typer.Context, as_json: Json = False) -> None:
    """Show the health of every part, consumer lag and freshness; exit status 1 if a part is not ok."""
    report = asyncio.run(look(given.resolved(context)))
    if as_json:
        console.print_json(report)
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(1)


def _show(report: StatusReport) -> None:
    parts = console.table("", "part", "state", "what to do")
    for part in report.parts:
        mark = console.OK if part.ok else console.BAD
        parts.add_row(mark, part.name, console.plain(part.message), console.plain(part.remedy))
    console.out.print(parts)
    if report.lag:
        lag = console.table("topic", "partition", "committed", "end", "behind")
        for partition in report.lag:
            committed = "none" if partition.committed is None else f"{partition.committed:,}"
            figures = (committed, f"{partition.end:,}", f"{partition.lag:,}")
            lag.add_row(partition.topic, str(partition.partition), *figures)
        console.out.print()
        console.out.print(lag)
    _show_freshness(report.freshness)


def _show_freshness(freshness: Freshness) -> None:
    if freshness.commit_to_searchable_ms is None:
        return
    console.out.print()
    for source, behind_s in freshness.behind_s.items():
        console.out.print(f"source {source}: every change is searchable up to {behind_s:.1f} s ago")
    if not freshness.commit_to_searchable_ms.count:
        return
    table = console.table("last minutes, ms", "p50", "p95", "p99", "max", "changes")
    rows = {"commit to searchable": freshness.commit_to_searchable_ms, **freshness.stages_ms}
    for name, part in rows.items():
        table.add_row(name, *part.figures(), f"{part.count:,}")
    console.out.print(table)

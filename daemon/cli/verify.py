"""`livevec verify`: compares tables with their indexes, and mends what differs."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli import context as given
from daemon.cli.context import Json

if TYPE_CHECKING:
    from daemon.cli.console import Steps
    from daemon.settings import Config, Pipeline
    from daemon.verify.checker import OnProgress
    from daemon.verify.differences import Report


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    context: typer.Context,
    pipeline: Annotated[str | None, typer.Argument(help="Name of the pipeline; without it, all.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Read the whole table again and write what differs.")
    ] = False,
    vectors: Annotated[
        bool, typer.Option(help="Embed the stored texts again and compare the stored vectors.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Compare tables with their indexes; exit status 1 if anything differs (with --repair: still differs).

    May run while changes are applied: a difference counts when it stays.
    """
    from daemon.cli import console

    config = given.resolved(context)
    results = asyncio.run(_all(config, given.pipelines(config, pipeline), repair, vectors))
    ok = all(result["ok"] for result in results)
    if as_json:
        totals = {name: sum(result[name] for result in results) for name in _COUNTS}
        console.print_json({"ok": ok, **totals, "pipelines": results})
    else:
        for result in results:
            _show(result)
    if not ok:
        raise typer.Exit(1)


_COUNTS = (
    *("rows", "documents", "missing", "stale", "orphaned", "wrong_vector"),
    *("not_indexed", "surplus_chunks", "lost_chunks"),
)


async def _all(
    config: "Config", pipelines: "list[Pipeline]", repair: bool, vectors: bool
) -> list[dict[str, Any]]:
    from daemon.cli import console

    with console.Steps() as steps:
        return [await _one(config, pipeline, repair, vectors, steps) for pipeline in pipelines]


async def _one(
    config: "Config", pipeline: "Pipeline", repair: bool, vectors: bool, steps: "Steps"
) -> dict[str, Any]:
    from daemon.verify.session import opened

    async with opened(config, pipeline, vectors=vectors) as session:
        step = f"check {pipeline.name}"
        steps.news(step)
        report = await session.check(_shown(steps, step))
        steps.news(step, f"{report.rows:,} rows, {len(report.differing):,} differ", end=True)
        reasons = sorted(await session.reconcile_reasons())
        mended: dict[str, Any] | None = None
        if repair and (reasons or not report.ok):
            step = f"repair {pipeline.name}"
            steps.news(step)
            done = await session.repair(report, _shown(steps, step), lambda what: steps.news(step, what))
            steps.news(step, f"{done.outcomes.get('embedded', 0):,} embedded, {done.swept:,} swept", end=True)
            step = f"check {pipeline.name} again"
            steps.news(step)
            mended = {"found": _content(report), **asdict(done)}
            report = await session.check(_shown(steps, step))
            reasons = sorted(await session.reconcile_reasons())
            steps.news(step, f"{report.rows:,} rows, {len(report.differing):,} differ", end=True)
        return {**_content(report), "needs_reconcile": reasons, "repair": mended}


def _shown(steps: "Steps", step: str) -> "OnProgress":
    def tell(what: str, done: int, total: int | None) -> None:
        steps.news(step, what, done, total)

    return tell


def _content(report: "Report") -> dict[str, Any]:
    from daemon.verify.differences import EXAMPLES_MAX, Difference

    ids = {difference: report.ids(difference) for difference in Difference}
    return {
        "pipeline": report.pipeline,
        "ok": report.ok,
        "rows": report.rows,
        "documents": report.documents,
        "refused": report.refused,
        **{difference.value: len(found) for difference, found in ids.items()},
        "examples": {difference.value: found[:EXAMPLES_MAX] for difference, found in ids.items() if found},
    }


def _show(result: dict[str, Any]) -> None:
    from daemon.cli import console

    mark = console.OK if result["ok"] else console.BAD
    console.out.print(
        f"{mark} {result['pipeline']}: {result['rows']:,} rows, {result['documents']:,} documents"
        + (f", {result['refused']:,} rows refused (dead letters)" if result["refused"] else "")
    )
    if not result["ok"]:
        table = console.table("difference", "documents", "for example")
        for name, examples in result["examples"].items():
            table.add_row(name, f"{result[name]:,}", console.plain(", ".join(examples)))
        console.out.print(table)
        console.out.print(f"mend it with `livevec verify {result['pipeline']} --repair`")
    elif result["needs_reconcile"]:
        reasons = ", ".join(result["needs_reconcile"])
        console.out.print(f"a reconcile was noted ({reasons}); `--repair` makes it and clears the note")

"""`livevec verify`: compares tables with their indexes, and mends what differs, with no Temporal."""

import asyncio
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.settings import Config, Pipeline
from daemon.verify.differences import EXAMPLES_MAX, Difference, IndexFindings
from daemon.verify.session import opened


def verify(
    context: typer.Context,
    pipeline: Annotated[str | None, typer.Argument(help="Name of the pipeline; without it, all.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write what differs again; the whole table where that is due.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Repair also where that removes more than half of an index.")
    ] = False,
    vectors: Annotated[
        bool, typer.Option(help="Embed the stored texts again and compare the stored vectors.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Compare tables with their indexes; exit status 1 if anything differs (with --repair: still differs).

    Changes may be applied meanwhile: a difference counts when it stays.
    """
    config = given.resolved(context)
    with console.Steps() as steps:
        results = [
            asyncio.run(_one(config, settings, repair, yes, vectors, steps))
            for settings in given.pipelines(config, pipeline)
        ]
    ok = all(result["ok"] for result in results)
    if as_json:
        totals = {name: sum(result[name] for result in results) for name in _COUNTS}
        console.print_json({"ok": ok, **totals, "pipelines": results})
    else:
        for result in results:
            _show(result)
    if not ok:
        raise typer.Exit(1)


_COUNTS = ("rows", "documents", *(difference.value for difference in Difference))


async def _one(
    config: Config, pipeline: Pipeline, repair: bool, yes: bool, vectors: bool, steps: console.Steps
) -> dict[str, Any]:
    async with opened(config, pipeline, vectors=vectors) as session:

        async def check(step: str) -> tuple[IndexFindings, list[str]]:
            steps.news(step)
            findings = await session.check(partial(steps.news, step))
            reasons = sorted(await session.reconcile_reasons())
            steps.news(step, f"{findings.rows:,} rows, {len(findings.differing):,} differ", end=True)
            return findings, reasons

        findings, reasons = await check(f"check {pipeline.name}")
        mended: dict[str, Any] | None = None
        if repair and (reasons or not findings.ok):
            step = f"repair {pipeline.name}"
            steps.news(step)
            done = await session.repair(
                partial(steps.news, step), lambda what: steps.news(step, f"waiting {what}"), may_empty=yes
            )
            steps.news(step, f"{done.outcomes.get('embedded', 0):,} embedded, {done.swept:,} swept", end=True)
            mended = {"found": _content(findings), **asdict(done)}
            findings, reasons = await check(f"check {pipeline.name} again")
        return {**_content(findings), "needs_reconcile": reasons, "repair": mended}


def _content(findings: IndexFindings) -> dict[str, Any]:
    ids = {difference: findings.ids(difference) for difference in Difference}
    return {
        "pipeline": findings.pipeline,
        "ok": findings.ok,
        "rows": findings.rows,
        "documents": findings.documents,
        "refused": findings.refused,
        **{difference.value: len(named) for difference, named in ids.items()},
        "examples": {difference.value: named[:EXAMPLES_MAX] for difference, named in ids.items() if named},
    }


def _show(result: dict[str, Any]) -> None:
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
        console.out.print(
            f"a reconcile is due ({reasons}); `livevec verify {result['pipeline']} --repair` makes it"
        )

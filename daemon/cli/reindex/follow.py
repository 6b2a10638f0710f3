"""What `livevec reindex` shows: the versions of an index, a gate, answers side by side, lines for daemon.toml."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

import typer
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError

from daemon.cli import console, flows
from daemon.embedding.embedder import EmbeddingSpace
from daemon.errors import WorkflowError
from daemon.index.connection import Client as RedisClient
from daemon.index.connection import connect, translated
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion, Versions, VersionTable, wanted
from daemon.settings import Config, Pipeline
from workflows.client import progress_now, query, result
from workflows.reindex.contract import (
    APPROVAL,
    BACKFILLING,
    CHECKING,
    GRACE,
    Answers,
    Gate,
    ReindexStatus,
    workflow_id,
)

_POLL_S = 0.5
_TEXT_SHOWN = 60
_ANSWERS_SHOWN = 5


async def follow(
    config: Config, pipeline: Pipeline, client: Client, handle: WorkflowHandle[Any, Any], as_json: bool
) -> None:
    """Follow it until readers are given the new version, or a person is asked.

    Raises:
        WorkflowError: it failed; says why.
        typer.Exit: the gate fails.
    """
    flows.print_address(config, handle)
    with console.Steps() as steps:
        reached = await _settled(client, handle, steps)
    await show(config, pipeline, client, as_json)
    if reached is not None and reached.gate is not None and not reached.gate.passed:
        raise typer.Exit(1)


async def _settled(
    client: Client, handle: WorkflowHandle[Any, Any], steps: console.Steps
) -> ReindexStatus | None:
    """Return the status once there is nothing to wait for; None: it has ended."""
    children = {BACKFILLING: "backfill", CHECKING: "check"}
    shown = ""
    while True:
        try:
            description = await handle.describe()
        except RPCError:
            steps.news("Temporal is away", "the workflow goes on when it is back")
            await asyncio.sleep(_POLL_S)
            continue
        if description.status is not WorkflowExecutionStatus.RUNNING:
            await result(handle)
            return None
        reached = await answered(handle)
        phase = reached.phase if reached else "no worker answers; start one: `livevec worker`"
        if shown and shown != phase:
            steps.news(shown, end=True)
        shown = phase
        if reached is not None and phase in (APPROVAL, GRACE):
            return reached
        waiting = ", ".join(reached.waiting_for) if reached else ""
        done, total = None, None
        if phase in children:
            child = client.get_workflow_handle(f"{handle.id}-{children[phase]}")
            try:
                progress = await progress_now(child, await child.describe())
            except RPCError:
                progress = None
            if progress is not None:
                done, total = progress.done, progress.total
        steps.news(phase, f"waiting for {waiting}" if waiting else "", done, total)
        await asyncio.sleep(_POLL_S)


async def answered(handle: WorkflowHandle[Any, Any]) -> ReindexStatus | None:
    """Return the workflow's status; None: no worker answers, or there is none."""
    try:
        status: ReindexStatus = await query(handle, "status", result_type=ReindexStatus, timeout_s=5.0)
    except WorkflowError:
        return None
    return status


async def show(config: Config, pipeline: Pipeline, client: Client, as_json: bool) -> None:
    """Show the versions there are, and how far the latest reindex is."""
    reached = await answered(client.get_workflow_handle(workflow_id(pipeline.name)))
    gate = reached.gate if reached else None
    async with aclosing(connect(config.redis)) as redis:
        versions = Versions(redis, pipeline.name)
        table = await versions.known()
        contents = [
            asdict(version)
            | {
                "state": _state(table, number),
                "failure": table.failed.get(number),
                "written_of": [
                    f"{topic}/{partition}" for topic, partition in sorted(await versions.writers(number))
                ],
            }
            for number, version in table.versions.items()
        ]
        texts = await _texts(redis, pipeline.name, reached) if reached and not as_json else {}
    # Before the swap, what daemon.toml asks for may be what is being made.
    swapped = reached is None or reached.grace_until_s is not None
    lines = _toml_lines(config, pipeline, table.version()) if swapped else []
    if as_json:
        console.print_json(
            {
                "pipeline": pipeline.name,
                "active": table.active,
                "versions": contents,
                "reindex": reached.model_dump(mode="json") if reached else None,
                "gate_failures": list(gate.failures) if gate else None,
                "daemon_toml": lines,
            }
        )
        return
    names = ("number", "state", "model", "dimension", "m", "ef_construction", "metric", "type", "text")
    shown = console.table("version", "state", "model", "dimension", "m", "ef", "metric", "type", "text")
    for content in sorted(contents, key=lambda content: content["number"]):
        shown.add_row(*(console.plain(content[name]) for name in names))
    console.out.print(shown)
    for number, why in table.failed.items():
        console.out.print(f"version {number} cannot be written: {why}", markup=False, soft_wrap=True)
    if reached is not None:
        _print_reached(reached, texts)
    if lines:
        console.out.print("\ndaemon.toml does not ask for what readers see; with these lines it does:")
        for line in lines:
            console.out.print(f"    {line}", markup=False, soft_wrap=True)


def _state(table: VersionTable, number: int) -> str:
    if number == table.active:
        return "searched"
    if number in table.failed:
        return "failed"
    return "retired" if number in table.retired else "beside it"


def _print_reached(reached: ReindexStatus, texts: dict[tuple[int, str], str]) -> None:
    waiting = f", for {', '.join(reached.waiting_for)}" if reached.waiting_for else ""
    console.out.print(
        f"\nlatest reindex: [bold]{reached.phase}[/bold]{waiting} {reached.note}", soft_wrap=True
    )
    if reached.gate is not None:
        _print_gate(reached.gate)
        for answers in reached.gate.quality.answers[:_ANSWERS_SHOWN]:
            _print_answers(answers, reached, texts)
    name = reached.pipeline
    if reached.phase == APPROVAL:
        force = "" if reached.gate is None or reached.gate.passed else " --force"
        console.out.print(f"\n`livevec reindex approve {name}{force}`, or `livevec reindex reject {name}`")
    elif reached.phase == GRACE:
        console.out.print(
            f"\n`livevec reindex rollback {name}` gives readers the old version again; "
            f"`livevec reindex finish {name}` removes it now"
        )


def _print_gate(gate: Gate) -> None:
    quality = gate.quality
    console.out.print(f"{console.OK if gate.passed else console.BAD} gate")
    for failure in gate.failures:
        console.out.print(f"    {failure}", markup=False)
    console.out.print(f"    {gate.rows:,} rows compared with {gate.documents:,} documents")
    if quality.recall is not None:
        part = " (more were left out: reindex.exact_vectors_max)" if quality.left_out else ""
        console.out.print(
            f"    recall@10 {quality.recall:.3f}, by {quality.queries} queries against exact search over "
            f"{quality.vectors:,} vectors{part}"
        )
    if quality.overlap is not None:
        console.out.print(f"    {quality.overlap:.0%} of the answers are those of the old version")


def _print_answers(answers: Answers, reached: ReindexStatus, texts: dict[tuple[int, str], str]) -> None:
    assert reached.old is not None
    assert reached.new is not None
    numbers = (reached.old.number, reached.new.number)
    query = texts.get((numbers[0], answers.query)) or texts.get((numbers[1], answers.query), "")
    table = console.table(f"version {numbers[0]}", "", f"version {numbers[1]}", "")
    pairs = list(zip_longest(answers.old, answers.new))
    for pair in pairs[:_ANSWERS_SHOWN]:
        cells: list[str] = []
        for number, hit in zip(numbers, pair, strict=True):
            shown = f"{hit[0]}: {texts.get((number, hit[0]), '(gone)')}" if hit else ""
            cells += [shown, f"{hit[1]:.4f}" if hit else ""]
        table.add_row(*map(console.plain, cells))
    console.out.print()
    console.out.print(f"{answers.query}: {query}  ({answers.overlap:.0%} the same)", markup=False)
    console.out.print(table)


async def _texts(redis: RedisClient, pipeline: str, reached: ReindexStatus) -> dict[tuple[int, str], str]:
    """Read the texts of the documents that are shown, by version and id; out of Redis, since Temporal holds none."""
    if reached.gate is None or reached.old is None or reached.new is None:
        return {}
    places: dict[tuple[int, str], None] = {}
    for answers in reached.gate.quality.answers[:_ANSWERS_SHOWN]:
        for version, hits in ((reached.old, answers.old), (reached.new, answers.new)):
            places |= dict.fromkeys((version.number, identifier) for identifier, _ in hits)
            places[version.number, answers.query] = None
    pipe = redis.pipeline(transaction=False)
    for number, identifier in places:
        pipe.execute_command("HGET", Layout(pipeline, number).chunk_key(identifier, 0), "text")
    with translated():
        stored = await pipe.execute()
    texts = {place: text.decode() for place, text in zip(places, stored, strict=True) if text is not None}
    return {place: console.shortened(text, _TEXT_SHOWN) for place, text in texts.items()}


def _toml_lines(config: Config, pipeline: Pipeline, version: IndexVersion) -> list[str]:
    """Return the lines by which daemon.toml asks for this version; none where it asks for it already."""
    embedding = config.embedding
    space = EmbeddingSpace(embedding.model, embedding.dimension, 0, version.fingerprint)
    differing = set(version.differences(wanted(pipeline, space, version.number)))
    shared: list[str] = []
    if differing & {"model", "dimension"}:
        shared += ["[embedding]", f"model = {_text(version.model)}", f"dimension = {version.dimension}", ""]
        others = [other.name for other in config.pipelines if other.name != pipeline.name]
        if others:
            shared.insert(1, f"# also for {', '.join(others)}: reindex them, too")
    own: list[str] = []
    if "text" in differing:
        own.append(f"text = {_text(version.text)}")
    if "metadata" in differing:
        fields = (
            _table({"column": column, "type": kind, "name": name}) for column, name, kind in version.metadata
        )
        own.append(f"metadata = [{', '.join(fields)}]")
    if differing & {"m", "ef_construction", "metric", "type"}:
        index: dict[str, str | int] = {"m": version.m, "ef_construction": version.ef_construction}
        index |= {"ef_runtime": pipeline.index.ef_runtime, "metric": version.metric, "type": version.type}
        own.append(f"index = {_table(index)}")
    if "chunking" in differing:
        tokens_max, tokens_overlap = version.chunking
        chunking: dict[str, str | int] = {"tokens_max": tokens_max, "tokens_overlap": tokens_overlap}
        own.append(f"chunking = {_table(chunking | {'tokenizer': pipeline.chunking.tokenizer})}")
    if own:
        shared += ["[[pipelines]]", f"name = {_text(pipeline.name)}", *own]
    return shared


def _table(fields: Mapping[str, str | int]) -> str:
    """Return an inline table, which tomli-w writes over several lines."""
    return f"{{ {', '.join(f'{name} = {_text(value)}' for name, value in fields.items())} }}"


def _text(value: str | int) -> str:
    """Return a basic string of TOML, whose escapes include those of JSON, or a number."""
    return json.dumps(value, ensure_ascii=False)

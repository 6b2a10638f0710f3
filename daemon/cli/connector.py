"""`livevec connector`: the Debezium connectors of the sources."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Group

from connectors import preflight, slot
from connectors.connect import Applied, KafkaConnect
from connectors.definition import render
from connectors.prepare import prepare
from connectors.rules import Finding
from connectors.tables import exclusions
from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.errors import ConnectorError
from daemon.settings import Config, PostgresSource

STREAMING_TIMEOUT_S = 60.0

app = typer.Typer(no_args_is_help=True)

Source = Annotated[str | None, typer.Argument(help="Name of the source; without it, every source.")]
OneSource = Annotated[str, typer.Argument(help="Name of the source.")]


@app.command()
def apply(
    context: typer.Context,
    source: Source = None,
    timeout_s: Annotated[
        float, typer.Option(help="Longest wait until changes stream, in seconds.")
    ] = STREAMING_TIMEOUT_S,
    as_json: Json = False,
) -> None:
    """Create or update publication, topics and connector as daemon.toml says, and wait until changes stream.

    Everything is checked first; what does not fit is refused, with what to change. Applying twice changes nothing.
    """
    config = given.resolved(context)
    with console.Steps() as steps:
        results = {
            chosen.name: apply_source(config, chosen, steps, timeout_s)
            for chosen in given.postgres_sources(config, source)
        }
    if as_json:
        contents = [
            {"source": name, "connector": applied, "prepared": prepared}
            for name, (applied, prepared) in results.items()
        ]
        console.print_json({"sources": contents})
        return
    for name, (applied, _) in results.items():
        console.out.print(f"{console.OK} connector {name}: {applied}, streaming")


@app.command()
def check(context: typer.Context, source: Source = None, as_json: Json = False) -> None:
    """Check databases, topics and connectors without changing anything; exit status 1 if a check fails."""
    config = given.resolved(context)
    findings_by_source = {
        chosen.name: preflight.check(chosen, config.pipelines, config.kafka)
        for chosen in given.postgres_sources(config, source)
    }
    ok = all(finding.ok for findings in findings_by_source.values() for finding in findings)
    if as_json:
        sources = {
            name: [asdict(finding) for finding in findings] for name, findings in findings_by_source.items()
        }
        console.print_json({"ok": ok, "sources": sources})
    else:
        for name, findings in findings_by_source.items():
            console.out.print(_findings_table(name, findings))
    if not ok:
        raise typer.Exit(1)


@app.command()
def status(context: typer.Context, source: Source = None, as_json: Json = False) -> None:
    """Show each connector and whether its slot is read; exit status 1 if one does not stream."""
    config = given.resolved(context)
    with KafkaConnect(config.connect) as client:
        statuses = [_status(client, chosen) for chosen in given.postgres_sources(config, source)]
    if as_json:
        console.print_json({"sources": statuses})
    else:
        table = console.table("", "source", "connector", "task", "slot", "error")
        for status in statuses:
            mark = console.OK if status["streaming"] else console.BAD
            reading = f"{status['slot']} {'active' if status['slot_active'] else 'not active'}"
            cells = (status["source"], status["state"], status["task"] or "none", reading, status["error"])
            table.add_row(mark, *map(console.plain, cells))
        console.out.print(table)
    if not all(status["streaming"] for status in statuses):
        raise typer.Exit(1)


@app.command()
def pause(context: typer.Context, source: OneSource) -> None:
    """Stop reading; the slot makes PostgreSQL keep its log until `resume`."""
    with _client(context, source) as client:
        client.pause(source)


@app.command()
def resume(context: typer.Context, source: OneSource) -> None:
    """Continue after `pause`."""
    with _client(context, source) as client:
        client.resume(source)


@app.command()
def restart(context: typer.Context, source: OneSource) -> None:
    """Restart the connector and its task."""
    with _client(context, source) as client:
        client.restart(source, only_failed=False)


@app.command()
def delete(
    context: typer.Context,
    source: OneSource,
    drop_slot: Annotated[
        bool, typer.Option("--drop-slot", help="Also drop the slot; changes that were not read yet are lost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove the connector. Its slot stays, and makes PostgreSQL keep its log, unless it is dropped too."""
    config = given.resolved(context)
    (chosen,) = given.postgres_sources(config, source)
    with KafkaConnect(config.connect) as client:
        deleted = client.delete(chosen, drop_slot)
    if as_json:
        console.print_json({"source": source, "deleted": deleted, "slot_dropped": drop_slot})
        return
    console.out.print(f"connector {source} removed" if deleted else f"there was no connector {source}")
    if not drop_slot:
        console.out.print(
            f"its slot {chosen.slot_name} is kept; `livevec connector delete {source} --drop-slot` drops it"
        )


def apply_source(
    config: Config, source: PostgresSource, steps: console.Steps, timeout_s: float = STREAMING_TIMEOUT_S
) -> tuple[Applied, list[str]]:
    """Prepare, check and apply a source for all pipelines that read it, and wait until its changes stream.

    Returns:
        What was done to the connector, and what else was created.

    Raises:
        ConnectorError: something does not fit (the findings were printed), or the connector did not start in time.
    """
    pipelines = config.pipelines
    with steps.step(f"prepare {source.name}"):
        definition = render(source, pipelines, exclusions(source, pipelines))
        prepared = prepare(source, pipelines, config.kafka)
        findings = preflight.check(source, pipelines, config.kafka)
    wrong = [finding for finding in findings if not finding.ok]
    if wrong:
        console.err.print(_findings_table(source.name, wrong))
        raise ConnectorError(
            f"source {source.name!r} does not fit: {', '.join(finding.check for finding in wrong)}",
            "change what is listed above, then apply again",
        )
    step = f"connector {source.name}"
    steps.news(step)
    with KafkaConnect(config.connect) as client:
        applied = client.apply(source.name, definition)
        client.wait_until_streaming(source, timeout_s, lambda line: steps.news(step, line))
    steps.news(step, f"{applied}, streaming", end=True)
    return applied, prepared


def _status(client: KafkaConnect, source: PostgresSource) -> dict[str, Any]:
    """Return the state by Kafka Connect, and the slot's by PostgreSQL, which alone proves that changes are read."""
    status, present = client.status(source.name), slot.read(source)
    active = present is not None and present.active
    return {
        "source": source.name,
        "state": status.state if status else "none",
        "task": status.task if status else None,
        "error": status.error if status else "",
        "slot": source.slot_name,
        "slot_active": active,
        "streaming": active and status is not None and (status.state, status.task) == ("RUNNING", "RUNNING"),
    }


def _client(context: typer.Context, source: str) -> KafkaConnect:
    config = given.resolved(context)
    given.postgres_sources(config, source)
    return KafkaConnect(config.connect)


def _findings_table(source: str, findings: Sequence[Finding]) -> Group:
    table = console.table("", "check", "found", "what to do")
    for finding in findings:
        mark = console.OK if finding.ok else console.BAD
        table.add_row(mark, finding.check, console.plain(finding.message), console.plain(finding.remedy))
    return console.titled(f"source {source}", table)

"""`livevec publish`: write events to the topic of a pipeline."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import typer

from daemon.bench.percentiles import percentiles_ms
from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.errors import ConfigError
from daemon.settings import EventSource
from daemon.source.kafka import publisher


def publish(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of a pipeline that reads an events source.")],
    id_member: Annotated[
        str, typer.Option("--id", help="The member of each object that holds its id.")
    ] = "id",
    delete: Annotated[bool, typer.Option("--delete", help="Delete the ids instead.")] = False,
    as_json: Json = False,
) -> None:
    """Read JSON objects from standard input, one a line, and write them as events; each is searchable soon after."""
    config = given.resolved(context)
    settings = config.pipeline(pipeline)
    if not isinstance(config.source(settings.source), EventSource):
        raise ConfigError(f"pipeline {pipeline!r} mirrors a table: change the rows there, not the topic")
    acknowledged_s = publisher.publish(config.kafka, config.topic(settings), _events(id_member, delete))
    if as_json:
        acknowledged_ms = asdict(percentiles_ms(acknowledged_s))
        console.print_json({"published": len(acknowledged_s), "acknowledged_ms": acknowledged_ms})
    else:
        console.err.print(f"{len(acknowledged_s)} published")


def _events(id_member: str, delete: bool) -> Iterator[tuple[str, dict[str, Any] | None]]:
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ConfigError(
                f"line {number} is not JSON ({error}); correct it: the lines before it may be published"
            ) from error
        identifier = value.get(id_member) if isinstance(value, dict) else None
        if not isinstance(identifier, str | int) or isinstance(identifier, bool) or identifier == "":
            raise ConfigError(f"line {number} has no text or number in {id_member!r}; name its id with --id")
        yield str(identifier), None if delete else value

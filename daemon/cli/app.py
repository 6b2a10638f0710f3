"""The entry point: names the commands, and turns an error into one message and an exit status.

A command's module is imported when the command is called, so that `livevec --help` answers at once; the modules
themselves import at their top whatever they need.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from daemon.errors import ConfigError, LivevecError

EXIT_FAILED = 1
EXIT_CONFIG = 2
ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file.", show_default="$LIVEVEC_CONFIG, else daemon.toml"),
]

COMMANDS = {
    "run": "Run the daemon until SIGTERM or SIGINT; it then finishes what it has read, commits and ends.",
    "worker": (
        "Run the workflows' worker until SIGTERM or SIGINT; what it was doing goes on in another, or in the "
        "next."
    ),
    "up": "Start the embedded stack: PostgreSQL, Kafka, Connect, Triton, Redis, Temporal.",
    "down": "Stop every process of the embedded stack; its data stays.",
    "demo": "Start the embedded stack, mirror a table of real texts, edit it, and show how fresh the index is.",
    "search": "Find the documents whose meaning is nearest to TEXT.",
    "status": "Show the health of every part, consumer lag and freshness; exit status 1 if a part is not ok.",
    "verify": "Compare tables with their indexes; exit status 1 if anything differs (with --repair: still differs).",
    "publish": (
        "Read JSON objects from standard input, one a line, and write them as events; each is searchable "
        "soon after."
    ),
    "backfill": (
        "Read the table of a pipeline and bring its index up to date with it; a full one also removes "
        "orphans."
    ),
    "retry": "Try dead letters again now, whatever their pauses; the row is read again where it comes from.",
    "reconcile": (
        "Compare a table with its index and show what differs; with --wait, exit status 1 where anything is "
        "left."
    ),
    "connector": "Apply, check and steer the connectors of the sources.",
    "reindex": (
        "Build an index anew with another model, template or HNSW setting, and give it to readers at once: "
        "`livevec reindex PIPELINE --m 32`, the same as `livevec reindex start PIPELINE --m 32`."
    ),
    "workflows": "Workflows: what runs, how far it is; pause, resume, throttle, cancel.",
    "config": "Check, show and document daemon.toml.",
    "bench": "Measure on a running stack.",
    "model": "Build an embedding model for Triton, and check it.",
}
"""Their names, and the first line of what each says of itself: what `livevec --help` prints."""


class _Commands(TyperGroup):
    """The commands by name: as their names and lines until one is called, which loads that one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line) for name, line in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, arguments = super().resolve_command(ctx, args)
        return name, load(name) if name else None, arguments


def load(name: str) -> Any:
    """Return a command, or a group: `app`, or the function of that name, in NAME.py or in NAME/command.py."""
    module = import_module("daemon.cli." + ("stack" if name in ("up", "down") else name))
    if hasattr(module, "__path__"):
        module = import_module(f"{module.__name__}.command")
    parent = typer.Typer()
    if hasattr(module, "app"):
        parent.add_typer(module.app, name=name, help=COMMANDS[name])
    else:
        parent.command(name)(getattr(module, name))
    return typer.main.get_group(parent).commands[name]


app = typer.Typer(
    name="livevec",
    cls=_Commands,
    help="Keeps a Redis HNSW vector index as fresh as the database it mirrors.",
    no_args_is_help=True,
    # A traceback with local variables would show the text of rows.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"livevec {installed_version('livevec')}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    config: ConfigPath = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = config


def main(commands: typer.Typer = app) -> None:
    """Run the commands, and end the process with their exit status.

    Args:
        commands: others than livevec's own, that are to report their errors in the same way.
    """
    status = EXIT_FAILED
    try:
        commands()
    except LivevecError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        status = EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else EXIT_FAILED if ended.code else 0
    if "temporalio.bridge.temporal_sdk_bridge" in sys.modules:
        # Its threads abort the process when they return into an interpreter that is ending: PyGILState_Release.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

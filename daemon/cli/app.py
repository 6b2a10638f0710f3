"""The entry point: registers the commands, and turns an error into one message and an exit status."""

import os
import sys
from typing import Annotated

import typer

from daemon.cli import (
    backfill,
    config,
    connector,
    model,
    publish,
    reconcile,
    run,
    search,
    stack,
    verify,
    worker,
    workflows,
)
from daemon.cli.bench import command as bench
from daemon.cli.context import ConfigPath
from daemon.cli.demo import command as demo
from daemon.cli.reindex import command as reindex
from daemon.cli.retry import command as retry
from daemon.cli.status import command as status
from daemon.errors import ConfigError, LivevecError

EXIT_FAILED = 1
EXIT_CONFIG = 2

app = typer.Typer(
    name="livevec",
    help="Keeps a Redis HNSW vector index as fresh as the database it mirrors.",
    no_args_is_help=True,
    # A traceback with local variables would show the text of rows.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (run, worker, stack, demo, search, status, verify, publish, backfill, retry, reconcile):
    group.register(app)
app.add_typer(connector.app, name="connector")
app.add_typer(reindex.app, name="reindex")
app.add_typer(workflows.app, name="workflows")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
app.add_typer(model.app, name="model")


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"livevec {version('livevec')}")
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

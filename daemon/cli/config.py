"""`livevec config`: check, show and document daemon.toml."""

import json
import sys

import typer

from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.cli.reference import markdown, masked
from daemon.config import resolve_local
from daemon.errors import ConfigError

app = typer.Typer(no_args_is_help=True)


@app.command()
def check(context: typer.Context, as_json: Json = False) -> None:
    """Check the configuration; run this first after a change."""
    config = given.loaded(context)
    path = given.config_path(context)
    if as_json:
        names = [pipeline.name for pipeline in config.pipelines]
        console.print_json({"ok": True, "path": str(path), "pipelines": names})
    else:
        console.out.print(f"{console.OK} {path} is valid")


@app.command()
def show(context: typer.Context, as_json: Json = False) -> None:
    """Print all settings as the daemon will use them, with secrets masked."""
    config = given.loaded(context)
    try:
        config = resolve_local(config)
    except ConfigError as error:
        console.err.print(f"{error}; addresses are shown as they are written", markup=False, style="yellow")
    settings = masked(config)
    if as_json:
        console.print_json(settings)
        return
    for key, value in settings.items():
        console.out.print(f"[bold]{key}[/bold]", json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def docs() -> None:
    """Print the reference of every key as Markdown."""
    sys.stdout.write(markdown())

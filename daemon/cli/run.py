"""`livevec run`: the daemon itself."""

import asyncio

import typer

from daemon.cli import context as given


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(context: typer.Context) -> None:
    """Run the daemon until SIGTERM or SIGINT; it then finishes what it has read, commits and ends."""
    from daemon.live.service import Service
    from daemon.telemetry import logs

    config = given.resolved(context)
    logs.configure(config.telemetry.log_format, config.telemetry.log_level)
    asyncio.run(Service(config).run())

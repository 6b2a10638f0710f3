"""`livevec run`: the daemon itself."""

import asyncio

import typer

from daemon.cli import context as given
from daemon.live.service import Service
from daemon.telemetry import logs


def run(context: typer.Context) -> None:
    """Run the daemon until SIGTERM or SIGINT; it then finishes what it has read, commits and ends."""
    config = given.resolved(context)
    logs.configure(config.telemetry.log_format, config.telemetry.log_level)
    asyncio.run(Service(config).run())

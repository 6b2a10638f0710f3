"""`livevec worker`: runs the workflows: backfills, retries, reindexing, reconciles."""

import asyncio

import typer

from daemon.cli import context as given
from daemon.telemetry import logs
from workflows import worker as workflows_worker


def worker(context: typer.Context) -> None:
    """Run the workflows' worker until SIGTERM or SIGINT; what it was doing goes on in another, or in the next."""
    config = given.resolved(context)
    logs.configure(config.telemetry.log_format, config.telemetry.log_level)
    asyncio.run(workflows_worker.run(config))

"""`livevec worker`: runs the workflows' decisions and their activities. Its life, from start to a graceful stop."""

import asyncio
import signal
import time
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import Worker

from daemon.errors import ConfigError, RetryLater, WorkflowError
from daemon.patience import Patience
from daemon.settings import Config
from daemon.telemetry.health import Health
from daemon.telemetry.http import TelemetryServer
from daemon.telemetry.metrics import Metrics
from workflows import search_attributes
from workflows.client import connect
from workflows.deployment import deployment, make_current
from workflows.failures import TranslatesFailures
from workflows.reconcile import schedules
from workflows.registry import WORKFLOWS, activities, sandbox
from workflows.resources import Resources
from workflows.retry.feeder import fed

T = TypeVar("T")
log = structlog.get_logger(__name__)
_ALIVE_INTERVAL_S = 5.0
_AWAY_S = 1.0


def make_worker(client: Client, config: Config, resources: Resources) -> Worker:
    """Return a worker of the configured task queue, tuned so that what a killed one left is taken up soon."""
    settings = config.temporal.worker
    return Worker(
        client,
        task_queue=config.temporal.task_queue,
        workflows=WORKFLOWS,
        activities=activities(resources),
        workflow_runner=sandbox(),
        interceptors=[TranslatesFailures()],
        max_concurrent_activities=settings.activities_max,
        max_concurrent_workflow_tasks=settings.workflow_tasks_max,
        # A decision waits so long for the worker that knows the workflow, which may be dead.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        # How old a heartbeat may be that another attempt goes on from.
        max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        graceful_shutdown_timeout=timedelta(seconds=config.shutdown_timeout_s),
        deployment_config=deployment(settings),
    )


async def run(config: Config) -> None:
    """Work until SIGTERM or SIGINT; then activities end with their present step, and others go on from there.

    Raises:
        LivevecError: the worker cannot go on; says what to do.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    health = Health(metrics)
    telemetry = TelemetryServer(
        config.temporal.worker.metrics_address, metrics, health, "temporal.worker.metrics_address"
    )
    telemetry.start()
    alive = asyncio.ensure_future(_alive(health))
    try:
        client = await _until_stopped(stop, _connected(config, health))
        if client is not None:
            await _work(client, config, metrics, health, stop)
    finally:
        alive.cancel()
        telemetry.stop()


async def _work(
    client: Client, config: Config, metrics: Metrics, health: Health, stop: asyncio.Event
) -> None:
    resources = Resources(config, metrics, health)
    worker = make_worker(client, config, resources)
    try:
        async with worker:
            await _until_stopped(stop, _current(client, config))
            await _until_stopped(stop, _scheduled(client, config))
            health.assigned = True
            log.info("worker_ready", task_queue=config.temporal.task_queue, namespace=client.namespace)
            async with fed(config, client, metrics, health, stop):
                await stop.wait()
            health.assigned = False
            log.info("worker_stopping")
    finally:
        await resources.close()
    log.info("worker_stopped")


async def _current(client: Client, config: Config) -> None:
    versioned = deployment(config.temporal.worker)
    if versioned is not None and config.temporal.worker.become_current:
        await make_current(client, versioned.version)


async def _scheduled(client: Client, config: Config) -> None:
    """Keep the schedules; without them the worker still does what runs now."""
    try:
        await schedules.keep(client, config)
    except WorkflowError as error:
        log.error(
            "reconciles_not_scheduled",
            error=str(error),
            remedy="restart the worker once Temporal accepts schedules",
        )


async def _connected(config: Config, health: Health) -> Client:
    """Return the client, once Temporal is there; it may start after the worker."""
    runtime = _runtime(config.temporal.worker.sdk_metrics_address)

    async def attempt() -> Client:
        try:
            return await connect(config, runtime)
        except WorkflowError as error:
            raise RetryLater(str(error), _AWAY_S) from error

    client = await Patience(config.retry, health).call("temporal", attempt)
    try:
        await search_attributes.ensure(client)
    except WorkflowError as error:
        # Some servers let only an operator look at them; they may well be there.
        log.warning("search_attributes_not_checked", error=str(error))
    return client


def _runtime(address: str) -> Runtime:
    try:
        metrics = PrometheusConfig(
            bind_address=address, counters_total_suffix=True, durations_as_seconds=True, unit_suffix=True
        )
        return Runtime(telemetry=TelemetryConfig(metrics=metrics))
    except ValueError as error:
        raise ConfigError(
            f"temporal.worker.sdk_metrics_address {address!r} cannot be served ({error}); is another worker "
            "running there?"
        ) from error


async def _alive(health: Health) -> None:
    while True:
        health.alive_at_s = time.monotonic()
        await asyncio.sleep(_ALIVE_INTERVAL_S)


async def _until_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`; None: the worker is to stop first."""
    doing, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        stopping.cancel()

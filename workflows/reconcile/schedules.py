"""Temporal Schedules that start reconciles, one for each pipeline.

The worker keeps those that daemon.toml asks for; one that a person made with `livevec reconcile --schedule` takes
their place and is left alone. Each coroutine here raises WorkflowError where Temporal refuses.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from zlib import crc32

import structlog
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleDescription,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
)
from temporalio.service import RPCError, RPCStatusCode

from daemon.errors import ConfigError, WorkflowError
from daemon.settings import Config, Pipeline, PostgresSource
from workflows import search_attributes
from workflows.progress import duration
from workflows.reconcile.contract import Subject
from workflows.reconcile.workflow import Reconcile, ReconcileOrder, workflow_id

log = structlog.get_logger(__name__)
_FROM_FILE = "daemon.toml"
_BY_HAND = "livevec reconcile --schedule"
_INTERVAL = re.compile(r"(\d+)\s*([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_CRON_FIELDS = range(5, 8)
_JITTER_MAX = timedelta(minutes=10)
_JITTER_CRON = timedelta(minutes=1)
_CATCH_UP = timedelta(hours=1)
"""A run that Temporal was down for longer than that is left to the next one."""


@dataclass(frozen=True)
class Scheduled:
    """A pipeline's schedule as Temporal has it.

    Attributes:
        when: the interval or cron expression, and where it comes from.
        next_at: None: it is paused.
        runs: how often it started a reconcile.
        skipped: how often it did not, since the last one still ran.
    """

    pipeline: str
    schedule_id: str
    when: str
    repair: bool
    paused: bool
    next_at: datetime | None
    runs: int
    skipped: int


def schedule_id(pipeline: str) -> str:
    return f"livevec-reconcile-{pipeline}"


def parsed(when: str, pipeline: str) -> ScheduleSpec:
    """Parse an interval (`90s`, `30m`, `6h`, `1d`), or a cron expression (`0 3 * * *`, `@daily`), in UTC.

    Intervals are shifted by pipeline, so that not all of them begin at once. It raises ConfigError where it is neither.
    """
    text = when.strip()
    if match := _INTERVAL.fullmatch(text):
        every = timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])
        if every:
            return _interval(every, pipeline)
    elif text.startswith("@") or len(text.split()) in _CRON_FIELDS:
        return ScheduleSpec(cron_expressions=[text], jitter=_JITTER_CRON)
    raise ConfigError(
        f"{when!r} is no schedule; give an interval (90s, 30m, 6h, 1d), a cron expression ('0 3 * * *'), or @daily"
    )


def _interval(every: timedelta, pipeline: str) -> ScheduleSpec:
    offset = timedelta(seconds=crc32(pipeline.encode()) % max(1, int(every.total_seconds())))
    return ScheduleSpec(
        intervals=[ScheduleIntervalSpec(every=every, offset=offset)], jitter=min(every / 10, _JITTER_MAX)
    )


async def put(client: Client, config: Config, pipeline: Pipeline, when: str, order: ReconcileOrder) -> None:
    """Make or replace a pipeline's schedule; raise ConfigError where `when` is none, or the pipeline has no table."""
    if not isinstance(config.source(pipeline.source), PostgresSource):
        raise ConfigError(
            f"pipeline {pipeline.name!r} mirrors a topic of events: there is no table to compare it with"
        )
    spec = parsed(when, pipeline.name)
    await _put(client, config, pipeline, spec, order, f"{when.strip()} ({_BY_HAND})")


async def remove(client: Client, pipeline: str) -> bool:
    """Remove a pipeline's schedule; return whether there was one."""
    try:
        await client.get_schedule_handle(schedule_id(pipeline)).delete()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise _refused(pipeline, error) from error
    return True


async def scheduled(client: Client, pipeline: str) -> Scheduled | None:
    """Return a pipeline's schedule; None: it has none."""
    described = await _described(client, pipeline)
    if described is None:
        return None
    schedule, info = described.schedule, described.info
    action = schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    [order] = await client.data_converter.decode(action.args, [ReconcileOrder])
    return Scheduled(
        pipeline=pipeline,
        schedule_id=described.id,
        when=schedule.state.note or "",
        repair=order.subject.repair,
        paused=schedule.state.paused,
        next_at=info.next_action_times[0] if info.next_action_times and not schedule.state.paused else None,
        runs=info.num_actions,
        skipped=info.num_actions_skipped_overlap,
    )


async def keep(client: Client, config: Config) -> None:
    """Make Temporal's schedules those that daemon.toml asks for; may be repeated, by several workers at once."""
    for pipeline in config.pipelines:
        if not isinstance(config.source(pipeline.source), PostgresSource):
            continue
        described = await _described(client, pipeline.name)
        note = (described.schedule.state.note or "") if described else ""
        if described is not None and not note.endswith(f"({_FROM_FILE})"):
            continue
        if not pipeline.reconcile_every_s:
            if await remove(client, pipeline.name):
                log.info("reconcile_unscheduled", pipeline=pipeline.name)
            continue
        wanted = (
            f"every {duration(pipeline.reconcile_every_s)}, repair {pipeline.reconcile_repair} ({_FROM_FILE})"
        )
        if note != wanted:
            spec = _interval(timedelta(seconds=pipeline.reconcile_every_s), pipeline.name)
            order = ReconcileOrder(subject=Subject(pipeline=pipeline.name, repair=pipeline.reconcile_repair))
            await _put(client, config, pipeline, spec, order, wanted)
            log.info("reconcile_scheduled", pipeline=pipeline.name, every_s=pipeline.reconcile_every_s)


async def _put(
    client: Client, config: Config, pipeline: Pipeline, spec: ScheduleSpec, order: ReconcileOrder, note: str
) -> None:
    name = schedule_id(pipeline.name)
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            Reconcile.run,
            order,
            id=workflow_id(order.subject),
            task_queue=config.temporal.task_queue,
            typed_search_attributes=search_attributes.of(pipeline.name, pipeline.table),
            static_summary=f"Reconcile of {pipeline.table} with {pipeline.name}, as scheduled",
        ),
        spec=spec,
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCH_UP),
        state=ScheduleState(note=note),
    )
    try:
        try:
            await client.create_schedule(name, schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(name).update(lambda _: ScheduleUpdate(schedule=schedule))
    except RPCError as error:
        raise _refused(pipeline.name, error) from error


async def _described(client: Client, pipeline: str) -> ScheduleDescription | None:
    try:
        return await client.get_schedule_handle(schedule_id(pipeline)).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise _refused(pipeline, error) from error


def _refused(pipeline: str, error: RPCError) -> WorkflowError:
    return WorkflowError(f"the schedule of {pipeline!r}: Temporal refused ({error.message})")

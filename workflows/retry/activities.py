"""Trying dead letters again, in every index version that is written to now."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from temporalio import activity

from daemon.core.work import Refusal
from daemon.errors import RejectRow
from daemon.index.connection import connect
from daemon.index.registry import Versions
from daemon.projection.build import opened as table_opened
from daemon.settings import Pipeline, PostgresSource
from workflows.event_projection import opened as events_opened
from workflows.interruption import heartbeating
from workflows.retry.contract import AllTried, Attempt, Attempts, RetryPolicy, Tried, TryOutcome
from workflows.retry.events import Events
from workflows.retry.rows import Rows

if TYPE_CHECKING:
    from workflows.resources import Resources

_WORST_FIRST = (
    TryOutcome.REFUSED,
    TryOutcome.GONE,
    TryOutcome.TOO_OLD,
    TryOutcome.LATER,
    TryOutcome.WAITING,
    TryOutcome.APPLIED,
    TryOutcome.SUPERSEDED,
)
"""A document is done when it is done in every index version."""


class Refusals:
    """Collects refused rows: the workflow holds them already, another dead letter would begin them anew."""

    def __init__(self) -> None:
        self.found: dict[str, RejectRow] = {}

    async def put(self, refusal: Refusal, error: RejectRow) -> None:
        self.found[refusal.id] = error


class RetryActivities:
    """What the retry workflow has done."""

    def __init__(self, resources: "Resources") -> None:
        self._resources = resources

    @activity.defn(name="retry_dead_letters")
    async def retry(self, wanted: Attempts) -> AllTried:
        """Try each once; returns when what was written is on disk.

        Raises:
            RetryLater: a part is away: no attempt of any of them.
            ConfigError, StopPipeline, StopProcess: a person has to act first.
        """
        config = self._resources.config
        pipeline = config.pipeline(wanted.pipeline)
        async with heartbeating(lambda: ()):
            found = [
                await self._in_version(pipeline, number, wanted.attempts)
                for number in await self._written_versions(pipeline)
            ]
        tried = tuple(_worst(of_one) for of_one in zip(*found, strict=True))
        for one in tried:
            self._resources.metrics.dead_letters_tried.labels(pipeline.name, one.outcome.value).inc()
        return AllTried(tried, RetryPolicy.of(config.retry_dead_letters))

    async def _written_versions(self, pipeline: Pipeline) -> list[int]:
        client = connect(self._resources.config.redis)
        try:
            registry = await self._resources.patience.call("redis", Versions(client, pipeline.name).known)
        finally:
            await client.aclose()
        return [version.number for version in registry.written]

    async def _in_version(self, pipeline: Pipeline, number: int, attempts: Sequence[Attempt]) -> list[Tried]:
        """The results in the order of the attempts."""
        resources, refusals = self._resources, Refusals()
        config, patience = resources.config, resources.patience
        if isinstance(config.source(pipeline.source), PostgresSource):
            async with table_opened(
                config,
                pipeline,
                version=number,
                patience=patience,
                metrics=resources.metrics,
                dead_letters=refusals,
                share=resources.share,
            ) as table:
                await table.ensure_index()
                return await Rows(config, table, refusals.found).try_all(attempts)
        async with events_opened(
            config,
            pipeline,
            version=number,
            patience=patience,
            metrics=resources.metrics,
            dead_letters=refusals,
            share=resources.share,
        ) as events:
            await events.ensure_index()
            return await Events(config, patience, events, refusals.found).try_all(attempts)


def _worst(tried: Iterable[Tried]) -> Tried:
    return min(tried, key=lambda one: _WORST_FIRST.index(one.outcome))

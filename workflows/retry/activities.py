"""The activity that tries dead letters again, in every index version that is written to now."""

from collections.abc import Sequence

from temporalio import activity

from daemon.index.registry import Versions
from daemon.settings import Pipeline, PostgresSource
from workflows.interruption import heartbeating
from workflows.resources import Resources
from workflows.retry.contract import AllTried, Attempt, Attempts, RetryPolicy, Tried, TryOutcome
from workflows.retry.trials import EventTrials, RowTrials

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


class RetryActivities:
    """What the retry workflow has done."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    @activity.defn(name="retry_dead_letters")
    async def retry(self, order: Attempts) -> AllTried:
        """Try each once; return when what was written is on disk.

        Raises:
            RetryLater: a part is away: no attempt of any of them.
            ConfigError, StopPipeline, StopProcess: a person has to act first.
        """
        resources = self._resources
        pipeline = resources.config.pipeline(order.pipeline)
        async with heartbeating(lambda: ()):
            versions = Versions(resources.redis, pipeline.name)
            registry = await resources.patience.call("redis", versions.known)
            by_version = [
                await self._in_version(pipeline, version.number, order.attempts)
                for version in registry.written
            ]
        tried = tuple(
            min(results, key=lambda result: _WORST_FIRST.index(result.outcome))
            for results in zip(*by_version, strict=True)
        )
        for result in tried:
            resources.metrics.dead_letters_tried.labels(pipeline.name, result.outcome.value).inc()
        return AllTried(tried, RetryPolicy.of(resources.config.retry_dead_letters))

    async def _in_version(self, pipeline: Pipeline, number: int, attempts: Sequence[Attempt]) -> list[Tried]:
        """Return the results in the order of the attempts."""
        resources = self._resources
        if isinstance(resources.config.source(pipeline.source), PostgresSource):
            async with resources.projection(pipeline.name, number) as table:
                return await RowTrials(resources, table).try_all(attempts)
        async with resources.events(pipeline.name, number) as events:
            return await EventTrials(resources, events).try_all(attempts)

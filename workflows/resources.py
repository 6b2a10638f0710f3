"""What the activities of one worker share: connections, models, metrics; opened when first needed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from daemon.core.work import Refusal
from daemon.errors import LivevecError, RejectRow, RetryLater
from daemon.patience import Patience
from daemon.projection.build import Projection, opened
from daemon.projection.slow_lane import EmbedderShare, SlowLane
from daemon.settings import Config, Pipeline
from daemon.source.kafka.dead_letters import DeadLetterProducer, DeadLetterTopic
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics

PATIENCE_S = 10.0
"""A part that is away for longer fails the activity, which Temporal shows and tries again."""


@dataclass
class _Held:
    """One opened projection; `stale` ones are closed by their last user."""

    projection: Projection
    closing: AsyncExitStack
    users: int = 0
    stale: bool = False


class _RowLetters:
    """The dead letters of a projection, which is opened before its table's key is known."""

    def __init__(self, resources: "Resources", pipeline: Pipeline) -> None:
        self.key_columns: Sequence[str] = ()
        self._resources = resources
        self._pipeline = pipeline

    async def put(self, refusal: Refusal, error: RejectRow) -> None:
        await self._resources.dead_letter_topic(self._pipeline, self.key_columns).put(refusal, error)


class Resources:
    """Everything that activities need besides their arguments.

    Projections are kept between activities, each of one pipeline and index version, and opened anew after a
    failure that may lie in what was read when they were opened (a table's columns, an index version's settings).
    """

    def __init__(self, config: Config, metrics: Metrics, health: Health) -> None:
        self.config = config
        self.metrics = metrics
        self.health = health
        self.patience = Patience(config.retry, health, PATIENCE_S)
        self.dead_letters = DeadLetterProducer(config.kafka)
        self.share = EmbedderShare(config.slow_lane)
        self._places: dict[str, dict[int, _Held]] = {}
        self._opening = asyncio.Lock()
        self._lanes: dict[int, dict[str, SlowLane]] = {}

    def dead_letter_topic(self, pipeline: Pipeline, key_columns: Sequence[str] = ()) -> DeadLetterTopic:
        """Where refused rows of the pipeline go.

        Args:
            key_columns: of its table.
        """
        topic = self.config.kafka.dead_letter_topic(pipeline.name)
        keep_bytes = pipeline.keep_bytes_in_dead_letters
        return DeadLetterTopic(self.dead_letters, topic, pipeline.name, keep_bytes, key_columns)

    def lane(self, projection: Projection, owner: str) -> SlowLane:
        """A slow lane for one workflow, with a rate of its own, kept between its activities.

        Args:
            owner: the workflow's id.
        """
        lanes = self._lanes.setdefault(id(projection.projector), {})
        if owner not in lanes:
            lanes[owner] = SlowLane(projection.projector, projection.builder, projection.client, self.share)
        return lanes[owner]

    @asynccontextmanager
    async def projection(
        self, pipeline: str, version: int | None = None, *, fresh: bool = False
    ) -> AsyncIterator[Projection]:
        """The projection of a pipeline into an index version, shared with other activities.

        Args:
            version: None: the one that readers see now; its number is in what this gives.
            fresh: open it anew, to see the table and the registry as they are now.

        Raises:
            ConfigError: see `daemon.projection.build.opened`.
            FailureClass: a part failed.
        """
        place = self._places.setdefault(pipeline, {})
        async with self._opening:
            held = None if fresh or version is None else place.get(version)
            if held is None:
                held = await self._open(pipeline, version)
                await self._leave(place.pop(held.projection.version.number, None))
                place[held.projection.version.number] = held
            held.users += 1
        try:
            yield held.projection
        except LivevecError as error:
            number = held.projection.version.number
            if not isinstance(error, RetryLater) and place.get(number) is held:
                await self._leave(place.pop(number))
            raise
        finally:
            held.users -= 1
            if held.stale and not held.users:
                await held.closing.aclose()

    async def forget(self, pipeline: str, version: int) -> None:
        """Close the projection into a version that is removed."""
        async with self._opening:
            await self._leave(self._places.get(pipeline, {}).pop(version, None))

    async def close(self) -> None:
        """Close what is open; no activity may run any more."""
        for place in self._places.values():
            for held in place.values():
                await self._leave(held)
        self._places.clear()
        self.dead_letters.close()

    async def _open(self, pipeline: str, version: int | None) -> _Held:
        settings = self.config.pipeline(pipeline)
        letters = _RowLetters(self, settings)
        async with AsyncExitStack() as stack:
            projection = await stack.enter_async_context(
                opened(
                    self.config,
                    settings,
                    version=version,
                    patience=self.patience,
                    metrics=self.metrics,
                    dead_letters=letters,
                    share=self.share,
                )
            )
            letters.key_columns = projection.table.key
            stack.callback(self._lanes.pop, id(projection.projector), None)
            return _Held(projection, stack.pop_all())

    @staticmethod
    async def _leave(held: _Held | None) -> None:
        if held is not None:
            held.stale = True
            if not held.users:
                await held.closing.aclose()

"""What the activities of one worker share: connections, models, metrics; opened when first needed."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar, cast

from temporalio import activity

from daemon.core.work import Refusal
from daemon.errors import LivevecError, RejectRow, RetryLater
from daemon.index.connection import Client, connect
from daemon.index.durability import Durability
from daemon.patience import Patience
from daemon.projection.build import Assembly, EventProjection, Projection, opened, opened_events
from daemon.projection.slow_lane import EmbedderShare, SlowLane
from daemon.settings import Config, Pipeline
from daemon.source.kafka.dead_letters import DeadLetterProducer, DeadLetterTopic
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics

PATIENCE_S = 10.0
"""A part that is away for longer fails the activity, which Temporal shows and tries again."""

A = TypeVar("A", bound=Assembly)
_kept_refusals: ContextVar[dict[str, RejectRow] | None] = ContextVar("kept_refusals", default=None)


@dataclass
class _Held(Generic[A]):
    """One opened projection; `stale` ones are closed by their last user."""

    projection: A
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
        kept = _kept_refusals.get()
        if kept is None:
            await self._resources.dead_letter_topic(self._pipeline, self.key_columns).put(refusal, error)
        else:
            kept[refusal.id] = error


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
        self._places: dict[str, dict[int, _Held[Assembly]]] = {}
        self._opening: defaultdict[tuple[str, int | None], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lanes: dict[int, dict[str, SlowLane]] = {}

    @cached_property
    def redis(self) -> Client:
        """The connections for what belongs to no single index version: the registry of the versions."""
        return connect(self.config.redis)

    def dead_letter_topic(self, pipeline: Pipeline, key_columns: Sequence[str] = ()) -> DeadLetterTopic:
        """Return where refused rows of the pipeline go; `key_columns`: of its table."""
        topic = self.config.kafka.dead_letter_topic(pipeline.name)
        keep_bytes = pipeline.keep_bytes_in_dead_letters
        return DeadLetterTopic(self.dead_letters, topic, pipeline.name, keep_bytes, key_columns)

    @contextmanager
    def refusals(self) -> Iterator[dict[str, RejectRow]]:
        """Keep what the projectors refuse in this block and its tasks, by document id; write no dead letters of it."""
        kept: dict[str, RejectRow] = {}
        token = _kept_refusals.set(kept)
        try:
            yield kept
        finally:
            _kept_refusals.reset(token)

    async def durability(self, projection: Assembly) -> Durability:
        """Return what tells when the writes from now on are on disk."""
        return await self.patience.call("redis", Durability.begin, projection.client, self.config.redis)

    def lane(self, projection: Assembly) -> SlowLane:
        """Return the slow lane of the activity's workflow, with a rate of its own, kept between its activities."""
        lanes = self._lanes.setdefault(id(projection.projector), {})
        owner = activity.info().workflow_id or ""
        if owner not in lanes:
            lanes[owner] = SlowLane(projection.projector, projection.builder, projection.client, self.share)
        return lanes[owner]

    @asynccontextmanager
    async def projection(
        self, pipeline: str, version: int | None = None, *, fresh: bool = False
    ) -> AsyncIterator[Projection]:
        """Give the projection of a table into an index version, shared with other activities.

        It raises what `daemon.projection.build.opened` raises.

        Args:
            version: None: the one that readers see now; its number is in what this gives.
            fresh: open it anew, to see the table and the registry as they are now.
        """
        async with self._shared(pipeline, version, opened, fresh) as projection:
            yield projection

    @asynccontextmanager
    async def events(self, pipeline: str, version: int) -> AsyncIterator[EventProjection]:
        """Give the projection of an event topic into an index version; see `projection`."""
        async with self._shared(pipeline, version, opened_events) as projection:
            yield projection

    async def forget(self, pipeline: str, version: int) -> None:
        """Close the projection into a version that is removed."""
        async with self._opening[pipeline, version]:
            await self._leave(self._places.get(pipeline, {}).pop(version, None))

    async def close(self) -> None:
        """Close what is open; no activity may run any more."""
        for place in self._places.values():
            for held in place.values():
                await self._leave(held)
        self._places.clear()
        if "redis" in vars(self):
            await self.redis.aclose()
        self.dead_letters.close()

    @asynccontextmanager
    async def _shared(
        self,
        pipeline: str,
        version: int | None,
        opener: Callable[..., AbstractAsyncContextManager[A]],
        fresh: bool = False,
    ) -> AsyncIterator[A]:
        place = self._places.setdefault(pipeline, {})
        # A part that is away is waited for meanwhile: others wait only for the same version of the same pipeline.
        async with self._opening[pipeline, version]:
            held = None if fresh or version is None else cast("_Held[A] | None", place.get(version))
            if held is None:
                held = await self._open(pipeline, version, opener)
                number = held.projection.version.number
                replaced, place[number] = place.get(number), cast("_Held[Assembly]", held)
                held.users += 1
                await self._leave(replaced)
            else:
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

    async def _open(
        self, pipeline: str, version: int | None, opener: Callable[..., AbstractAsyncContextManager[A]]
    ) -> _Held[A]:
        settings = self.config.pipeline(pipeline)
        letters = _RowLetters(self, settings)
        async with AsyncExitStack() as stack:
            projection = await stack.enter_async_context(
                opener(
                    self.config,
                    settings,
                    version=version,
                    patience=self.patience,
                    metrics=self.metrics,
                    dead_letters=letters,
                    share=self.share,
                )
            )
            if isinstance(projection, Projection):
                letters.key_columns = projection.table.key
            stack.callback(self._lanes.pop, id(projection.projector), None)
            return _Held(projection, stack.pop_all())

    @staticmethod
    async def _leave(held: "_Held[Assembly] | None") -> None:
        if held is not None:
            held.stale = True
            if not held.users:
                await held.closing.aclose()

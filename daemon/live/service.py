"""The life of the process: start, read, watch, drain, stop. Builds the parts from the configuration."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from daemon.embedding.factory import Embedders
from daemon.errors import RetryLater, StopPipeline, StopProcess
from daemon.index import schema
from daemon.index.positions import Positions
from daemon.index.writer import load_functions
from daemon.live.edges import Edges
from daemon.live.mirror import Mirror, Parts
from daemon.live.partitions import Partitions
from daemon.live.versions import LiveVersions
from daemon.patience import Patience
from daemon.projection.slow_lane import tell_live_changes
from daemon.settings import Config, PostgresSource
from daemon.source.postgres.anchors import XidAnchors
from daemon.source.postgres.identity import IdentityWatch, check_partitions
from daemon.source.postgres.reader import PostgresReader
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics

_ANCHOR_INTERVAL_S = 3600.0
_HOUSEKEEPING_INTERVAL_S = 5.0
_SOURCE_WATCH_INTERVAL_S = 60.0
_VERSIONS_INTERVAL_S = 1.0
_LIVE_INTERVAL_S = 0.25
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Chore:
    """What is done again and again, under the name by which the health shows that it fails."""

    name: str
    interval_s: float
    work: Callable[[], Awaitable[None]]
    at_once: bool = False


class Service:
    """The daemon, the owner of all its parts. `run` returns when it was asked to stop and has drained.

    Args:
        edges: make what reaches out of the process.
    """

    def __init__(self, config: Config, edges: Edges | None = None) -> None:
        self._config = config
        self._edges = edges or Edges()
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self._patience = Patience(config.retry, self.health)
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._launched = 0
        self._closing = contextlib.AsyncExitStack()
        self._identities: dict[str, IdentityWatch] = {}
        self._versions: LiveVersions | None = None
        self._partitions: Partitions | None = None

    async def run(self) -> None:
        """Start, mirror until SIGTERM or SIGINT, drain, stop.

        Raises:
            LivevecError: the process cannot go on; says what to do.
        """
        self._edges.stop_signals(self._stop)
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        telemetry = self._edges.telemetry(self._config.telemetry.address, self.metrics, self.health)
        telemetry.start()
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            async with self._closing:
                try:
                    # While the loop turns, waiting for a part is no reason to be killed.
                    async with self._background([Chore("signs of life", 1.0, partial(asyncio.sleep, 0))]):
                        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if starting.done():
                        await self._work(*starting.result())
                finally:
                    for task in (starting, stopping):
                        task.cancel()
                    await asyncio.gather(starting, stopping, return_exceptions=True)
        finally:
            telemetry.stop()
        if self._failure is not None:
            raise self._failure

    # ---- the owner of the parts

    @property
    def ending(self) -> bool:
        """Whether the process is ending on a failure."""
        return self._failure is not None

    def batch_ended(self) -> None:
        if self._partitions is not None:
            self._partitions.hold_or_release()

    def failed(self, error: BaseException) -> None:
        """A batch or the consumer cannot go on: one pipeline stops, or the process does."""
        if isinstance(error, StopPipeline):
            for mirror in self._versions.all() if self._versions is not None else ():
                stopped = mirror.dispatcher.stopped
                if stopped is not None and mirror.pipeline.name not in self.health.stopped_pipelines:
                    self.health.stopped_pipelines[mirror.pipeline.name] = str(stopped)
                    log.error("pipeline_stopped", pipeline=mirror.pipeline.name, error=str(stopped))
            self.batch_ended()
            return
        if self._failure is None:
            self._failure = error
            log.error("stopping_on_failure", failure=type(error).__name__, error=str(error))
        self._stop.set()

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback or a forgotten task failed: going on could leave its records out."""
        self.failed(context.get("exception") or StopProcess(str(context["message"])))

    # ---- starting

    async def _start(self) -> tuple[Parts, LiveVersions, Partitions]:
        """Build all parts, waiting for those that are not up yet."""
        config, edges = self._config, self._edges
        redis = await self._closing.enter_async_context(contextlib.aclosing(edges.redis(config.redis)))
        await self._patience.call("redis", load_functions, redis)
        embedders = Embedders(self._patience, edges.embedder)
        self._closing.push_async_callback(embedders.close)
        dead_letters = edges.dead_letters(config.kafka)
        self._closing.callback(dead_letters.close)
        parts = Parts(
            config=config,
            redis=redis,
            embedders=embedders,
            dead_letters=dead_letters,
            patience=self._patience,
            metrics=self.metrics,
            readers={},
            anchors={},
        )
        for source in config.sources:
            if isinstance(source, PostgresSource):
                await self._start_source(source, parts)
        message_topics = {
            source.message_topic: source.name
            for source in config.sources
            if isinstance(source, PostgresSource)
        }
        versions = self._versions = LiveVersions(parts, self)
        await versions.start()
        positions = Positions(redis, config.kafka.group_id)
        partitions = self._partitions = Partitions(
            parts,
            versions,
            positions,
            message_topics,
            self.health,
            lambda topics, listener: edges.consumer(config.kafka, topics, listener),
            self,
        )
        self._closing.push_async_callback(partitions.close)
        return parts, versions, partitions

    async def _start_source(self, source: PostgresSource, parts: Parts) -> None:
        reader: PostgresReader = self._edges.source(source)
        self._closing.push_async_callback(reader.close)
        anchors = XidAnchors(parts.redis, source.name)
        parts.readers[source.name], parts.anchors[source.name] = reader, anchors
        self._identities[source.name] = IdentityWatch(parts.redis, reader, source)
        known = await self._patience.call("redis", anchors.load, source.era)
        try:
            await anchors.add(reader)
        except RetryLater:
            if not known:
                await self._patience.call(reader.part, anchors.add, reader)

    # ---- running

    async def _work(self, parts: Parts, versions: LiveVersions, partitions: Partitions) -> None:
        partitions.reader.start()
        log.info("started", pipelines=[pipeline.name for pipeline in self._config.pipelines])
        commit_s = self._config.kafka.commit_interval_ms / 1000
        chores = [
            Chore("offset commits", commit_s, partitions.commit),
            Chore("index versions", _VERSIONS_INTERVAL_S, lambda: versions.follow(partitions.owned)),
            Chore("signs of live changes", _LIVE_INTERVAL_S, partial(self._tell_live, parts, versions)),
            Chore("indexes", _HOUSEKEEPING_INTERVAL_S, partial(self._keep_house, parts, versions)),
        ]
        for source, anchors in parts.anchors.items():
            add = partial(anchors.add, parts.readers[source])
            chores.append(Chore(f"transaction ids of {source}", _ANCHOR_INTERVAL_S, add))
        for source in (source.name for source in self._config.sources):
            watch = partial(self._watch, parts, versions, source)
            chores.append(Chore(f"watch of {source}", _SOURCE_WATCH_INTERVAL_S, watch, at_once=True))
        async with self._background(chores):
            await self._stop.wait()
            waiting = sum(mirror.dispatcher.waiting_changes for mirror in versions.all())
            log.info("stopping", waiting=waiting)
            # Leaving the group revokes the partitions: `revoking` drains and says what to commit.
            await asyncio.to_thread(partitions.reader.stop)
        for mirror in versions.all():
            mirror.dispatcher.abandon()
        log.info("stopped")

    async def _tell_live(self, parts: Parts, versions: LiveVersions) -> None:
        """Let the slow lanes make room as long as batches are made."""
        launched = sum(mirror.dispatcher.launched for mirror in versions.all())
        if launched != self._launched:
            self._launched = launched
            await tell_live_changes(parts.redis)

    async def _keep_house(self, parts: Parts, versions: LiveVersions) -> None:
        """Make an index anew that vanished; show what only a look at Redis tells."""
        await versions.keep()
        for mirror in versions.all():
            name = mirror.metrics.name
            info = await schema.info(parts.redis, mirror.writer.layout.index)
            failures = info.indexing_failures if info else 0
            self.metrics.indexing_failures.labels(name).set(failures)
            if failures:
                log.error(
                    "documents_not_indexed",
                    pipeline=name,
                    documents=failures,
                    remedy="livevec verify --repair",
                )
            if mirror.active:
                reasons = await mirror.writer.reconcile_reasons()
                self.metrics.needs_reconcile.labels(name).set(bool(reasons))
        await parts.embedders.check()

    async def _watch(self, parts: Parts, versions: LiveVersions, source: str) -> None:
        """A lost history stops the process; a change of a table that never reached the log calls for a repair."""
        if source in self._identities:

            async def mark(reason: str) -> None:
                for mirror in versions.of_source(source):
                    await _mark(mirror, reason)

            await self._identities[source].check(mark)
        for mirror in versions.of_source(source):
            if mirror.dispatcher.stopped is not None or not mirror.active:
                continue
            try:
                if mirror.watch is None:
                    assert self._partitions is not None
                    topic = self._config.topic(mirror.pipeline)
                    count = await self._partitions.reader.partitions(topic)
                    await check_partitions(parts.redis, mirror.pipeline.name, topic, count)
                else:
                    await mirror.watch.check(lambda reason, mirror=mirror: _mark(mirror, reason))  # type: ignore[misc]
            except StopPipeline as error:
                mirror.dispatcher.fail(error)

    @contextlib.asynccontextmanager
    async def _background(self, chores: Sequence[Chore]) -> AsyncIterator[None]:
        """Do these again and again meanwhile; one that fails ends the process."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.failed(error)

        tasks = [asyncio.create_task(self._every(chore)) for chore in chores]
        for task in tasks:
            task.add_done_callback(ended)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _every(self, chore: Chore) -> None:
        """Do a chore again and again; where it fails for now, or only a person can mend it, it goes on, and shows."""
        pause_s = 0.0 if chore.at_once else chore.interval_s
        failing = False
        while True:
            await asyncio.sleep(pause_s)
            pause_s = chore.interval_s
            self.health.alive_at_s = time.monotonic()
            try:
                await chore.work()
            except (RetryLater, StopPipeline) as error:
                failing = True
                self.health.down(chore.name, error)
            else:
                if failing:
                    self.health.up(chore.name)
                failing = False


async def _mark(mirror: Mirror, reason: str) -> None:
    log.error(reason, pipeline=mirror.pipeline.name, remedy="livevec verify --repair")
    await mirror.writer.mark_for_reconcile(reason)

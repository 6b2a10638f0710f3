"""The life of the process: start, read, watch, drain, stop. Builds the parts from the configuration."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import structlog

from daemon.embedding.factory import Embedders
from daemon.errors import RetryLater, StopPipeline, StopProcess
from daemon.index import schema
from daemon.index.connection import connect
from daemon.index.positions import Positions
from daemon.index.writer import load_functions
from daemon.live.mirror import Parts
from daemon.live.partitions import Intake
from daemon.live.versions import Mirrors
from daemon.patience import Patience
from daemon.projection.slow_lane import tell_live_changes
from daemon.settings import Config, PostgresSource
from daemon.source.kafka.dead_letters import DeadLetterProducer
from daemon.source.kafka.reader import KafkaReader
from daemon.source.postgres.anchors import XidAnchors
from daemon.source.postgres.identity import IdentityWatch, check_partitions
from daemon.source.postgres.reader import PostgresReader
from daemon.telemetry.health import Health
from daemon.telemetry.http import TelemetryServer
from daemon.telemetry.metrics import Metrics

_ANCHOR_INTERVAL_S = 3600.0
_HOUSEKEEPING_INTERVAL_S = 5.0
_SOURCE_WATCH_INTERVAL_S = 60.0
_VERSIONS_INTERVAL_S = 1.0
_LIVE_INTERVAL_S = 0.25
log = structlog.get_logger(__name__)


class Service:
    """The daemon. `run` returns when it was asked to stop and has drained."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self._patience = Patience(config.retry, self.health)
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._launched = 0

    async def run(self) -> None:
        """Start, mirror until SIGTERM or SIGINT, drain, stop.

        Raises:
            LivevecError: the process cannot go on; says what to do.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.set_exception_handler(self._unexpected)
        telemetry = TelemetryServer(self._config.telemetry.address, self.metrics, self.health)
        telemetry.start()
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                reader = starting.result()
                await self._work(reader)
            else:
                starting.cancel()
        finally:
            stopping.cancel()
            telemetry.stop()
        if self._failure is not None:
            raise self._failure

    async def _start(self) -> KafkaReader:
        """Build all parts, waiting for those that are not up yet."""
        config = self._config
        self._redis = connect(config.redis)
        await self._patience.call("redis", lambda: load_functions(self._redis))
        self._embedders = Embedders(self._patience)
        self._readers: dict[str, PostgresReader] = {}
        self._anchors: dict[str, XidAnchors] = {}
        self._identities: dict[str, IdentityWatch] = {}
        for source in config.sources:
            if isinstance(source, PostgresSource):
                await self._start_source(source)
        self._dead_letters = DeadLetterProducer(config.kafka)
        parts = Parts(
            config=config,
            redis=self._redis,
            embedders=self._embedders,
            dead_letters=self._dead_letters,
            patience=self._patience,
            metrics=self.metrics,
            readers=self._readers,
            anchors=self._anchors,
        )
        message_topics = {
            source.message_topic: source.name
            for source in config.sources
            if isinstance(source, PostgresSource)
        }
        self._mirrors = Mirrors(parts, lambda: self._intake.hold_or_release(), self._ended)
        positions = Positions(self._redis, config.kafka.group_id)
        self._intake = Intake(
            parts,
            self._mirrors,
            positions,
            message_topics,
            self.health,
            lambda: self._failure is not None,
            self._ended,
        )
        await self._mirrors.start()
        topics = [*self._mirrors.by_topic, *message_topics]
        return KafkaReader(config.kafka, topics, self._intake, asyncio.get_running_loop())

    async def _start_source(self, source: PostgresSource) -> None:
        reader = PostgresReader(source)
        anchors = XidAnchors(self._redis, source.name)
        self._readers[source.name], self._anchors[source.name] = reader, anchors
        self._identities[source.name] = IdentityWatch(self._redis, reader, source)
        known = await self._patience.call("redis", anchors.load)
        try:
            await anchors.add(reader)
        except RetryLater:
            if not known:
                await self._patience.call("source", lambda: anchors.add(reader))

    async def _work(self, reader: KafkaReader) -> None:
        self._intake.reader = reader
        reader.start()
        log.info("started", pipelines=[pipeline.name for pipeline in self._config.pipelines])
        async with self._background(
            self._every(self._config.kafka.commit_interval_ms / 1000, self._intake.commit),
            self._every(_VERSIONS_INTERVAL_S, lambda: self._mirrors.follow(self._intake.owned)),
            self._every(_LIVE_INTERVAL_S, self._tell_live),
            self._every(_HOUSEKEEPING_INTERVAL_S, self._keep_house),
            self._every(_ANCHOR_INTERVAL_S, self._anchor),
            self._every(_SOURCE_WATCH_INTERVAL_S, self._watch_source, at_once=True),
        ):
            await self._stop.wait()
            log.info("stopping", waiting=sum(m.dispatcher.queue.changes for m in self._mirrors.all()))
            # Leaving the group revokes the partitions: `revoking` drains and says what to commit.
            await asyncio.to_thread(reader.stop)
        self._dead_letters.close()
        for source in self._readers.values():
            await source.close()
        await self._embedders.close()
        await self._redis.aclose()
        log.info("stopped")

    # ---- running

    def _ended(self, error: BaseException) -> None:
        """A batch or the consumer cannot go on: one pipeline stops, or the process does."""
        if isinstance(error, StopPipeline):
            for mirror in self._mirrors.all():
                stopped = mirror.dispatcher.stopped
                if stopped is not None and mirror.pipeline.name not in self.health.stopped_pipelines:
                    self.health.stopped_pipelines[mirror.pipeline.name] = str(stopped)
                    log.error("pipeline_stopped", pipeline=mirror.pipeline.name, error=str(stopped))
            self._intake.hold_or_release()
            return
        if self._failure is None:
            self._failure = error
            log.error("stopping_on_failure", failure=type(error).__name__, error=str(error))
        self._stop.set()

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback or a forgotten task failed: going on could leave its records out."""
        self._ended(context.get("exception") or StopProcess(str(context["message"])))

    async def _tell_live(self) -> None:
        """Let the slow lanes make room as long as batches are made."""
        launched = sum(mirror.dispatcher.launched for mirror in self._mirrors.all())
        if launched != self._launched:
            self._launched = launched
            await tell_live_changes(self._redis)

    async def _keep_house(self) -> None:
        """Recreate an index that vanished; show what only a look at Redis tells."""
        await self._mirrors.keep()
        for mirror in self._mirrors.all():
            name = mirror.metrics.name
            failures = await schema.indexing_failures(self._redis, mirror.writer.layout)
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
        await self._embedders.check()
        self.health.up("embedder")

    async def _anchor(self) -> None:
        for name, anchors in self._anchors.items():
            await anchors.add(self._readers[name])

    async def _watch_source(self) -> None:
        """A lost history stops the process; a change of a table that never reached the log calls for a repair."""
        for source, identity in self._identities.items():
            if await identity.check():
                for mirror in self._mirrors.all():
                    if mirror.pipeline.source == source:
                        log.warning("era_began", source=source, remedy="livevec verify --repair")
                        await mirror.writer.mark_for_reconcile("era_began")
        for mirror in self._mirrors.all():
            if mirror.dispatcher.stopped is not None or not mirror.active:
                continue
            try:
                if mirror.watch is None:
                    topic = self._config.topic(mirror.pipeline)
                    partitions = await self._intake.reader.partitions(topic)
                    await check_partitions(self._redis, mirror.pipeline.name, topic, partitions)
                    continue
                for difference in await mirror.watch.differences():
                    log.error(difference, pipeline=mirror.pipeline.name, remedy="livevec verify --repair")
                    await mirror.writer.mark_for_reconcile(difference)
            except StopPipeline as error:
                mirror.dispatcher.fail(error)

    async def _every(self, interval_s: float, work: Any, at_once: bool = False) -> None:
        """Do something again and again; a part that is away only postpones it."""
        pause_s = 0.0 if at_once else interval_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = interval_s
            self.health.alive_at_s = time.monotonic()
            try:
                await work()
            except RetryLater as error:
                self.health.down("housekeeping", error)
            else:
                self.health.up("housekeeping")

    @contextlib.asynccontextmanager
    async def _background(self, *work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run these meanwhile; one that fails ends the process."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._ended(error)

        tasks = [asyncio.ensure_future(one) for one in work]
        for task in tasks:
            task.add_done_callback(ended)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

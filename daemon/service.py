"""The life of the process: start, read, watch, drain, stop. Builds the parts from the configuration."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon.core.change import Outcome
from daemon.core.progress import PartitionProgress, Receipt
from daemon.embedding.factory import make_embedder
from daemon.errors import RejectRow, RetryLater, StopPipeline, StopProcess
from daemon.index import schema
from daemon.index.connection import connect
from daemon.index.positions import Positions, Verdict
from daemon.index.writer import load_functions
from daemon.mirror import Mirror, Parts, assemble
from daemon.patience import Patience
from daemon.settings import Config, PostgresSource
from daemon.source.anchors import XidAnchors
from daemon.source.dead_letters import DeadLetterProducer
from daemon.source.envelope import message_time_s
from daemon.source.identity import IdentityWatch, check_partitions
from daemon.source.kafka import KafkaReader, Partition
from daemon.source.postgres import PostgresReader
from daemon.source.record import Record
from daemon.telemetry.health import Health
from daemon.telemetry.http import TelemetryServer
from daemon.telemetry.metrics import Metrics

_ANCHOR_INTERVAL_S = 3600.0
_HOUSEKEEPING_INTERVAL_S = 5.0
_SOURCE_WATCH_INTERVAL_S = 60.0
log = structlog.get_logger(__name__)


@dataclass
class _Assignment:
    """The partitions that this process has now."""

    progress: dict[Partition, PartitionProgress] = field(default_factory=dict)
    reported: dict[Partition, int] = field(default_factory=dict)


class Service:
    """The daemon. `run` returns when it was asked to stop and has drained."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self._patience = Patience(config.retry, self.health)
        self._assignment = _Assignment()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._mirrors: dict[str, list[Mirror]] = {}
        self._held_topics: frozenset[str] = frozenset()
        self._seeks = 0
        self._fenced = False
        self._indexing_failures: dict[str, int] = {}
        self._beside: set[asyncio.Task[None]] = set()

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
        self._embedder = make_embedder(config.embedding)
        space = await self._patience.call("embedder", self._embedder.start)
        self._readers: dict[str, PostgresReader] = {}
        self._anchors: dict[str, XidAnchors] = {}
        self._identities: dict[str, IdentityWatch] = {}
        for source in config.sources:
            if isinstance(source, PostgresSource):
                await self._start_source(source)
        self._dead_letters = DeadLetterProducer(config.kafka)
        self._positions = Positions(self._redis, config.kafka.group_id)
        self._parts = Parts(
            config=config,
            redis=self._redis,
            embedder=self._embedder,
            space=space,
            dead_letters=self._dead_letters,
            patience=self._patience,
            metrics=self.metrics,
            readers=self._readers,
            anchors=self._anchors,
        )
        for pipeline in config.pipelines:
            mirror = await assemble(pipeline, self._parts, self._hold_or_release, self._ended)
            self._mirrors.setdefault(config.topic(pipeline), []).append(mirror)
        self._message_topics = {
            source.message_topic: source.name
            for source in config.sources
            if isinstance(source, PostgresSource)
        }
        topics = [*self._mirrors, *self._message_topics]
        return KafkaReader(config.kafka, topics, self, asyncio.get_running_loop())

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
        self._reader = reader
        reader.start()
        log.info("started", pipelines=[pipeline.name for pipeline in self._config.pipelines])
        async with self._background(
            self._every(self._config.kafka.commit_interval_ms / 1000, self._commit),
            self._every(_HOUSEKEEPING_INTERVAL_S, self._keep_house),
            self._every(_ANCHOR_INTERVAL_S, self._anchor),
            self._every(_SOURCE_WATCH_INTERVAL_S, self._watch_source, at_once=True),
        ):
            await self._stop.wait()
            log.info("stopping", waiting=sum(m.dispatcher.queue.changes for m in self._all_mirrors()))
            # Leaving the group revokes the partitions: `revoking` drains and says what to commit.
            await asyncio.to_thread(reader.stop)
        self._dead_letters.close()
        for source in self._readers.values():
            await source.close()
        await self._embedder.close()
        await self._redis.aclose()
        log.info("stopped")

    # ---- what the consumer thread tells

    def received(self, records: Sequence[Record], seeks: int) -> None:
        if seeks != self._seeks:
            return  # read before a seek that is on its way: they will come again
        if self._failure is not None:
            return  # what failed may have left a gap before these: they will be read again
        items: dict[Mirror, list[Any]] = {}
        for record in records:
            progress = self._assignment.progress.get((record.topic, record.partition))
            if progress is None:
                continue
            if record.topic in self._message_topics:
                self._message(record, progress)
            else:
                self._receive(record, progress, items)
        for mirror, batch in items.items():
            mirror.dispatcher.put(batch)
        self._hold_or_release()

    def _receive(self, record: Record, progress: PartitionProgress, items: dict[Mirror, list[Any]]) -> None:
        mirrors = self._mirrors[record.topic]
        receipt = Receipt(progress, record.offset, len(mirrors))
        noted = False
        for mirror in mirrors:
            mirror.metrics.read.inc()
            change = None
            try:
                change = mirror.decode(record)
            except RejectRow as error:
                if not noted:
                    progress.read(record.offset)
                    noted = True
                self._reject(mirror, record, error, receipt)
                continue
            except StopPipeline as error:
                mirror.dispatcher.stop(error)
                self._ended(error)
            if not noted:
                progress.read(record.offset, change.committed_at_s if change else 0.0)
                noted = True
            if change is not None:
                items.setdefault(mirror, []).append(mirror.item(record, change, receipt))
            elif mirror.dispatcher.stopped is None:
                mirror.metrics.outcomes[Outcome.IGNORED].inc()
                receipt.settle()

    def _reject(self, mirror: Mirror, record: Record, error: RejectRow, receipt: Receipt) -> None:
        self._later(mirror.reject(record, error, receipt))

    def _message(self, record: Record, progress: PartitionProgress) -> None:
        """Every change committed before this time was sent before it; true of us where all that was read is done."""
        progress.read(record.offset)
        progress.done(record.offset)
        try:
            sent_s = message_time_s(record)
        except RejectRow as error:
            log.warning("message_unreadable", error=str(error), topic=record.topic)
            return
        source = self._message_topics[record.topic]
        if sent_s is not None:
            for topic, mirrors in self._mirrors.items():
                if mirrors[0].pipeline.source == source:
                    for partition, other in self._assignment.progress.items():
                        if partition[0] == topic:
                            other.idle_at(sent_s)

    async def assigned(self, committed: Mapping[Partition, int | None]) -> Mapping[Partition, int | None]:
        partitions = list(committed)
        applied = await self._patience.call("redis", lambda: self._positions.claim(partitions))
        start: dict[Partition, int | None] = {}
        for partition in partitions:
            self._assignment.progress[partition] = PartitionProgress()
            known, group = applied[partition], committed[partition]
            if known is None and group is not None and group > 0:
                await self._lost_history(partition, "redis_has_no_position")
            start[partition] = known if group is None or known is None else min(known, group)
        self.health.assigned = True
        log.info("assigned", partitions={f"{t}/{p}": start[t, p] for t, p in partitions})
        return start

    async def revoking(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        topics = {topic for topic, _ in partitions}
        dispatchers = [
            m.dispatcher for t in topics for m in self._mirrors.get(t, ()) if not m.dispatcher.stopped
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.shutdown_timeout_s):
                await asyncio.gather(*(dispatcher.drained() for dispatcher in dispatchers), *self._beside)
        offsets = self._committable(partitions)
        try:
            advanced = await self._positions.advance(offsets) is Verdict.ADVANCED
        except RetryLater:
            advanced = False
        self.lost(partitions)
        offsets = offsets if advanced else {}
        log.info("revoked", partitions={f"{t}/{p}": offsets.get((t, p)) for t, p in partitions})
        return offsets

    def lost(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._assignment.progress.pop(partition, None)
            self._assignment.reported.pop(partition, None)
        self._positions.release(partitions)
        self.health.assigned = bool(self._assignment.progress)

    def gap(self, partition: Partition, reason: str) -> None:
        log.error(
            "records_lost_before_they_were_read",
            partition=f"{partition[0]}/{partition[1]}",
            reason=reason,
            remedy="livevec verify --repair; raise the topic's retention above the longest outage",
        )
        self._assignment.progress[partition] = PartitionProgress()
        self._assignment.reported.pop(partition, None)
        self._later(self._after_gap(partition))

    async def _after_gap(self, partition: Partition) -> None:
        await self._patience.call("redis", lambda: self._positions.reset(partition))
        await self._lost_history(partition, "records_lost_before_they_were_read")

    def failed(self, error: BaseException) -> None:
        self._ended(error)

    # ---- running

    def _ended(self, error: BaseException) -> None:
        """A batch or the consumer cannot go on: one pipeline stops, or the process does."""
        if isinstance(error, StopPipeline):
            for mirror in self._all_mirrors():
                stopped = mirror.dispatcher.stopped
                if stopped is not None and mirror.pipeline.name not in self.health.stopped_pipelines:
                    self.health.stopped_pipelines[mirror.pipeline.name] = str(stopped)
                    log.error("pipeline_stopped", pipeline=mirror.pipeline.name, error=str(stopped))
            self._hold_or_release()
            return
        if self._failure is None:
            self._failure = error
            log.error("stopping_on_failure", failure=type(error).__name__, error=str(error))
        self._stop.set()

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback or a forgotten task failed: going on could leave its records out."""
        self._ended(context.get("exception") or StopProcess(str(context["message"])))

    def _hold_or_release(self) -> None:
        """Pause the topics whose queues are full or whose pipeline stopped; resume those that are half empty."""
        limits = self._config.batching
        held = set()
        for topic, mirrors in self._mirrors.items():
            share = 0.5 if topic in self._held_topics else 1.0
            for mirror in mirrors:
                queue = mirror.dispatcher.queue
                full = queue.changes >= limits.queue_changes_max * share
                full = full or queue.size_bytes >= limits.queue_bytes_max * share
                if full or mirror.dispatcher.stopped is not None:
                    held.add(topic)
        if held != self._held_topics:
            self._held_topics = frozenset(held)
            self.metrics.paused.set(bool(held))
            self._reader.pause(self._held_topics)

    async def _commit(self) -> None:
        """Advance the positions beside the data, then the group's offsets; never the other way round."""
        offsets = {
            partition: offset
            for partition, offset in self._committable(list(self._assignment.progress)).items()
            if offset != self._assignment.reported.get(partition)
        }
        self._show_progress()
        if not offsets:
            return
        verdict = await self._positions.advance(offsets)
        if verdict is Verdict.WENT_BACK:
            await self._redis_went_back()
        elif verdict is Verdict.ADVANCED:
            self._reader.commit(offsets)
            self._assignment.reported.update(offsets)
        elif not self._fenced:
            log.warning("fenced", partitions=[f"{t}/{p}" for t, p in offsets])
        self._fenced = verdict is Verdict.FENCED

    def _committable(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        found = {}
        for partition in partitions:
            progress = self._assignment.progress.get(partition)
            if progress is not None and progress.committable is not None:
                found[partition] = progress.committable
        return found

    async def _redis_went_back(self) -> None:
        """Read again from what this Redis says, and note that offsets cover only the log's own writes."""
        self.metrics.went_back.inc()
        partitions = list(self._assignment.progress)
        self._seeks += 1
        for mirror in self._all_mirrors():
            mirror.dispatcher.abandon()
        for partition in partitions:
            self._assignment.progress[partition] = PartitionProgress()
        self._assignment.reported.clear()

        async def restore() -> Mapping[Partition, int | None]:
            await load_functions(self._redis)
            for mirror in self._all_mirrors():
                await schema.ensure(self._redis, mirror.pipeline, self._parts.space)
                await mirror.writer.mark_for_reconcile("redis_went_back")
            for anchors in self._anchors.values():
                await anchors.store()
            return await self._positions.claim(partitions)

        # Until the seek nothing that is read is taken, so Redis is waited for here, should it leave again.
        applied = await self._patience.call("redis", restore)
        log.error(
            "redis_went_back",
            seeking={f"{t}/{p}": applied[t, p] for t, p in partitions},
            remedy="livevec verify --repair, for what offsets do not cover",
        )
        self._reader.seek(applied)

    async def _lost_history(self, partition: Partition, reason: str) -> None:
        for mirror in self._mirrors.get(partition[0], ()):
            await self._patience.call("redis", lambda m=mirror: m.writer.mark_for_reconcile(reason))  # type: ignore[misc]

    async def _keep_house(self) -> None:
        """Recreate an index that vanished; show what only a look at Redis tells."""
        for mirror in self._all_mirrors():
            await schema.ensure(self._redis, mirror.pipeline, self._parts.space)
            name = mirror.pipeline.name
            failures = await schema.indexing_failures(self._redis, mirror.writer.layout)
            self.metrics.indexing_failures.labels(name).set(failures)
            if failures:
                log.error(
                    "documents_not_indexed",
                    pipeline=name,
                    documents=failures,
                    remedy="livevec verify --repair",
                )
            reasons = await mirror.writer.reconcile_reasons()
            self.metrics.needs_reconcile.labels(name).set(bool(reasons))
        await self._embedder.check()
        self.health.up("embedder")

    async def _anchor(self) -> None:
        for name, anchors in self._anchors.items():
            await anchors.add(self._readers[name])

    async def _watch_source(self) -> None:
        """A lost history stops the process; a change of a table that never reached the log calls for a repair."""
        for source, identity in self._identities.items():
            if await identity.check():
                for mirror in self._all_mirrors():
                    if mirror.pipeline.source == source:
                        log.warning("era_began", source=source, remedy="livevec verify --repair")
                        await mirror.writer.mark_for_reconcile("era_began")
        for mirror in self._all_mirrors():
            if mirror.dispatcher.stopped is not None:
                continue
            try:
                if mirror.watch is None:
                    topic = self._config.topic(mirror.pipeline)
                    partitions = await self._reader.partitions(topic)
                    await check_partitions(self._redis, mirror.pipeline.name, topic, partitions)
                    continue
                for difference in await mirror.watch.differences():
                    log.error(difference, pipeline=mirror.pipeline.name, remedy="livevec verify --repair")
                    await mirror.writer.mark_for_reconcile(difference)
            except StopPipeline as error:
                mirror.dispatcher.stop(error)
                self._ended(error)

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

    def _show_progress(self) -> None:
        parts = self._assignment.progress.values()
        self.metrics.lag.set(sum(progress.pending for progress in parts))
        oldest_s = min((progress.oldest_s for progress in parts if progress.oldest_s), default=None)
        self.metrics.oldest.set(max(0.0, time.time() - oldest_s) if oldest_s else 0.0)
        for source in self._config.sources:
            fresh = [
                progress.fresh_through_s
                for (topic, _), progress in self._assignment.progress.items()
                if topic in self._mirrors and self._mirrors[topic][0].pipeline.source == source.name
            ]
            if fresh:
                self.metrics.fresh_through.labels(source.name).set(min(fresh))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this beside the rest; if it fails, the process ends."""

        def ended(task: asyncio.Task[None]) -> None:
            self._beside.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._ended(error)

        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(ended)

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

    def _all_mirrors(self) -> list[Mirror]:
        return [mirror for mirrors in self._mirrors.values() for mirror in mirrors]

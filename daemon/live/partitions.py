"""What the consumer tells, and how far it is: records in, acknowledged offsets out.

The listener of the Kafka thread; every method runs in the event loop.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon.core.change import Outcome
from daemon.core.progress import PartitionProgress, Receipt
from daemon.core.queue import Item
from daemon.errors import RejectRow, RetryLater, StopPipeline
from daemon.index.positions import Positions, Verdict
from daemon.index.writer import load_functions
from daemon.live.mirror import Mirror, Parts
from daemon.live.versions import Mirrors
from daemon.source.envelope import message_time_s
from daemon.source.kafka.reader import KafkaReader, Partition
from daemon.source.record import Record
from daemon.telemetry.health import Health

log = structlog.get_logger(__name__)


@dataclass
class _Assignment:
    """The partitions that this process has now."""

    progress: dict[Partition, PartitionProgress] = field(default_factory=dict)
    reported: dict[Partition, int] = field(default_factory=dict)


class Intake:
    """The partitions of this process, from record to committed offset.

    Args:
        parts: of the process.
        mirrors: that get the records.
        positions: beside the data.
        message_topics: topics of logical messages, and their sources.
        health: shows whether partitions are assigned.
        is_ending: whether the process is ending on a failure.
        on_failure: a pipeline, or the process, cannot go on.
    """

    def __init__(
        self,
        parts: Parts,
        mirrors: Mirrors,
        positions: Positions,
        message_topics: Mapping[str, str],
        health: Health,
        is_ending: Callable[[], bool],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.reader: KafkaReader
        self._parts = parts
        self._config = parts.config
        self._patience = parts.patience
        self._metrics = parts.metrics
        self._mirrors = mirrors
        self._positions = positions
        self._message_topics = message_topics
        self._health = health
        self._is_ending = is_ending
        self._on_failure = on_failure
        self._assignment = _Assignment()
        self._held_topics: frozenset[str] = frozenset()
        self._seeks = 0
        self._fenced = False
        self._beside: set[asyncio.Task[None]] = set()

    @property
    def owned(self) -> list[Partition]:
        """The partitions that this process has now."""
        return list(self._assignment.progress)

    # ---- what the consumer thread tells

    def received(self, records: Sequence[Record], seeks: int) -> None:
        if seeks != self._seeks:
            return  # read before a seek that is on its way: they will come again
        if self._is_ending():
            return  # what failed may have left a gap before these: they will be read again
        items: dict[Mirror, list[Item]] = {}
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
        self.hold_or_release()

    def _receive(self, record: Record, progress: PartitionProgress, items: dict[Mirror, list[Item]]) -> None:
        mirrors = list(self._mirrors.by_topic[record.topic])
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
                mirror.dispatcher.fail(error)
            if not noted:
                progress.read(record.offset, change.committed_at_s if change else 0.0)
                noted = True
            if change is not None:
                items.setdefault(mirror, []).append(mirror.item(record, change, receipt))
            elif mirror.dispatcher.stopped is None or mirror.dispatcher.retired:
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
            for topic, mirrors in self._mirrors.by_topic.items():
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
        # A version that was registered while these partitions were another's gets their changes from the first on.
        await self._patience.call("redis", lambda: self._mirrors.follow(self.owned))
        self._health.assigned = True
        log.info("assigned", partitions={f"{t}/{p}": start[t, p] for t, p in partitions})
        return start

    async def revoking(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        topics = {topic for topic, _ in partitions}
        dispatchers = [
            m.dispatcher
            for t in topics
            for m in self._mirrors.by_topic.get(t, ())
            if not m.dispatcher.stopped
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
        self._health.assigned = bool(self._assignment.progress)

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
        self._on_failure(error)

    # ---- running

    def hold_or_release(self) -> None:
        """Pause the topics whose queues are full or whose pipeline stopped; resume those that are half empty."""
        limits = self._config.batching
        held = set()
        for topic, mirrors in self._mirrors.by_topic.items():
            share = 0.5 if topic in self._held_topics else 1.0
            for mirror in mirrors:
                queue = mirror.dispatcher.queue
                full = queue.changes >= limits.queue_changes_max * share
                full = full or queue.size_bytes >= limits.queue_bytes_max * share
                if full or mirror.dispatcher.stopped is not None:
                    held.add(topic)
        if held != self._held_topics:
            self._held_topics = frozenset(held)
            self._metrics.paused.set(bool(held))
            self.reader.pause(self._held_topics)

    async def commit(self) -> None:
        """Advance the positions beside the data, then the group's offsets; never the other way round."""
        offsets = {
            partition: offset
            for partition, offset in self._committable(self.owned).items()
            if offset != self._assignment.reported.get(partition)
        }
        self._show_progress()
        if not offsets:
            return
        verdict = await self._positions.advance(offsets)
        if verdict is Verdict.WENT_BACK:
            await self._redis_went_back()
        elif verdict is Verdict.ADVANCED:
            self.reader.commit(offsets)
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
        self._metrics.went_back.inc()
        partitions = self.owned
        self._seeks += 1
        for mirror in self._mirrors.all():
            mirror.dispatcher.abandon()
        for partition in partitions:
            self._assignment.progress[partition] = PartitionProgress()
        self._assignment.reported.clear()

        async def restore() -> Mapping[Partition, int | None]:
            await load_functions(self._parts.redis)
            await self._mirrors.restore()
            for mirror in self._mirrors.all():
                await mirror.writer.mark_for_reconcile("redis_went_back")
            for anchors in self._parts.anchors.values():
                await anchors.store()
            return await self._positions.claim(partitions)

        # Until the seek nothing that is read is taken, so Redis is waited for here, should it leave again.
        applied = await self._patience.call("redis", restore)
        log.error(
            "redis_went_back",
            seeking={f"{t}/{p}": applied[t, p] for t, p in partitions},
            remedy="livevec verify --repair, for what offsets do not cover",
        )
        self.reader.seek(applied)

    async def _lost_history(self, partition: Partition, reason: str) -> None:
        for mirror in self._mirrors.by_topic.get(partition[0], ()):
            await self._patience.call("redis", lambda m=mirror: m.writer.mark_for_reconcile(reason))  # type: ignore[misc]

    def _show_progress(self) -> None:
        parts = self._assignment.progress.values()
        self._metrics.lag.set(sum(progress.pending for progress in parts))
        oldest_s = min((progress.oldest_s for progress in parts if progress.oldest_s), default=None)
        self._metrics.oldest.set(max(0.0, time.time() - oldest_s) if oldest_s else 0.0)
        for source in self._config.sources:
            fresh = [
                progress.fresh_through_s
                for (topic, _), progress in self._assignment.progress.items()
                if topic in self._mirrors.by_topic
                and self._mirrors.by_topic[topic][0].pipeline.source == source.name
            ]
            if fresh:
                self._metrics.fresh_through.labels(source.name).set(min(fresh))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this beside the rest; if it fails, the process ends."""

        def ended(task: asyncio.Task[None]) -> None:
            self._beside.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._on_failure(error)

        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(ended)

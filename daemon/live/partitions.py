"""The partitions of this process, from a record that was read to an offset that is committed.

The listener of the consumer thread; every method runs in the event loop. Here it is decided where reading starts, what
may be committed, when partitions are paused, and what follows where records or writes were lost.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from daemon.core.progress import PartitionProgress
from daemon.errors import RejectRow, RetryLater
from daemon.index.positions import Positions, Verdict
from daemon.index.writer import load_functions
from daemon.live.dispatcher import Owner
from daemon.live.mirror import Mirror, Parts
from daemon.live.versions import LiveVersions
from daemon.source.envelope import message_time_s
from daemon.source.kafka.reader import KafkaReader, Listener, Partition
from daemon.source.record import Record
from daemon.telemetry.health import Health

log = structlog.get_logger(__name__)


class PartitionsOwner(Owner, Protocol):
    """Whom the partitions tell what ends the process."""

    @property
    def ending(self) -> bool:
        """Whether the process is ending on a failure."""
        ...


class Partitions:
    """The partitions of this process.

    Args:
        parts: of the process.
        versions: whose mirrors get the records.
        positions: beside the data.
        message_topics: topics of logical messages, and their sources.
        health: shows whether partitions are assigned.
        consumer: makes the reader that tells this listener, over these topics.
        owner: is told what ends the process.
    """

    def __init__(
        self,
        parts: Parts,
        versions: LiveVersions,
        positions: Positions,
        message_topics: Mapping[str, str],
        health: Health,
        consumer: Callable[[Sequence[str], Listener], KafkaReader],
        owner: PartitionsOwner,
    ) -> None:
        self._parts = parts
        self._config = parts.config
        self._patience = parts.patience
        self._metrics = parts.metrics
        self._versions = versions
        self._positions = positions
        self._message_topics = message_topics
        self._health = health
        self._owner = owner
        self._progress: dict[Partition, PartitionProgress] = {}
        self._starts: dict[Partition, int | None] = {}
        self._reported: dict[Partition, int] = {}
        self._held_topics: frozenset[str] = frozenset()
        self._seeks = 0
        self._fenced = False
        self._recoveries: dict[Partition, asyncio.Task[None]] = {}
        self.reader = consumer([*versions.topics(), *message_topics], self)

    @property
    def owned(self) -> list[Partition]:
        """The partitions that this process has now."""
        return list(self._progress)

    # ---- what the consumer thread tells

    def received(self, records: Sequence[Record], seeks: int) -> None:
        if seeks != self._seeks:
            return  # read before a seek that is on its way: they will come again
        if self._owner.ending:
            return  # what failed may have left a gap before these: they will be read again
        takers: dict[Mirror, None] = {}
        for record in records:
            progress = self._progress.get((record.topic, record.partition))
            if progress is None:
                continue
            if record.topic in self._message_topics:
                self._message(record, progress)
                continue
            mirrors = self._versions.of_topic(record.topic)
            receipt = progress.read(record.offset, readers=len(mirrors))
            for mirror in mirrors:
                mirror.take(record, receipt)
            takers.update(dict.fromkeys(mirrors))
        for mirror in takers:
            mirror.dispatcher.pump()
        self.hold_or_release()

    def _message(self, record: Record, progress: PartitionProgress) -> None:
        """Note that every change committed before this message was sent before it.

        It is true of a partition where all that was read is done.
        """
        progress.read(record.offset).settle()
        try:
            sent_s = message_time_s(record)
        except RejectRow as error:
            log.warning("message_unreadable", error=str(error), topic=record.topic)
            return
        if sent_s is None:
            return
        source = self._message_topics[record.topic]
        topics = {self._config.topic(mirror.pipeline) for mirror in self._versions.of_source(source)}
        for (topic, _), other in self._progress.items():
            if topic in topics:
                other.idle_at(sent_s)

    async def assigned(self, committed: Mapping[Partition, int | None]) -> Mapping[Partition, int | None]:
        partitions = list(committed)
        applied = await self._patience.call("redis", self._positions.claim, partitions)
        start: dict[Partition, int | None] = {}
        for partition in partitions:
            self._progress[partition] = PartitionProgress()
            known, group = applied[partition], committed[partition]
            if group and known is None:
                await self._lost_history(partition, "redis_has_no_position")
            elif group and known is not None and known < group:
                # The position is always written first: this Redis went back while nobody held the partition.
                await self._lost_history(partition, "redis_went_back")
            start[partition] = known if group is None or known is None else min(known, group)
            self._starts[partition] = start[partition]
        # A version that was registered while these partitions were another's gets their changes from the first on.
        await self._patience.call("redis", self._versions.follow, self.owned)
        self._health.assigned = True
        log.info("assigned", partitions={f"{t}/{p}": start[t, p] for t, p in partitions})
        return start

    async def revoking(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        dispatchers = [
            mirror.dispatcher
            for topic in {topic for topic, _ in partitions}
            for mirror in self._versions.of_topic(topic)
            if not mirror.dispatcher.stopped
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.shutdown_timeout_s):
                await asyncio.gather(*(dispatcher.drained() for dispatcher in dispatchers))
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
            if partition in self._recoveries:
                self._recoveries.pop(partition).cancel()
            self._progress.pop(partition, None)
            self._starts.pop(partition, None)
            self._reported.pop(partition, None)
        self._positions.release(partitions)
        self._health.assigned = bool(self._progress)

    def gap(self, partition: Partition, reason: str) -> None:
        log.error(
            "records_lost_before_they_were_read",
            partition=f"{partition[0]}/{partition[1]}",
            reason=reason,
            remedy="livevec verify --repair; raise the topic's retention above the longest outage",
        )
        self._progress[partition] = PartitionProgress()
        self._reported.pop(partition, None)
        before = self._recoveries.pop(partition, None)
        if before is not None:
            before.cancel()
        task = asyncio.ensure_future(self._after_gap(partition))
        self._recoveries[partition] = task
        task.add_done_callback(lambda task: self._recovered(partition, task))

    async def _after_gap(self, partition: Partition) -> None:
        """Mark the loss, then let the position start anew; until both are done nothing of the partition is committed.

        Whatever ends this process in between, the next one starts from the old offset, and finds the gap again.
        """
        await self._lost_history(partition, "records_lost_before_they_were_read")
        await self._patience.call("redis", self._positions.reset, partition)

    def _recovered(self, partition: Partition, task: "asyncio.Task[None]") -> None:
        if self._recoveries.get(partition) is task:
            del self._recoveries[partition]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._owner.failed(error)

    async def close(self) -> None:
        """End what still recovers; it is begun again by whoever gets the partition."""
        tasks = list(self._recoveries.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def failed(self, error: BaseException) -> None:
        self._owner.failed(error)

    # ---- running

    def hold_or_release(self) -> None:
        """Pause the topics whose queues are full or whose pipeline stopped; resume those that are half empty."""
        limits = self._config.batching
        held = set()
        for topic in self._versions.topics():
            share = 0.5 if topic in self._held_topics else 1.0
            for mirror in self._versions.of_topic(topic):
                dispatcher = mirror.dispatcher
                full = dispatcher.waiting_changes >= limits.queue_changes_max * share
                full = full or dispatcher.waiting_bytes >= limits.queue_bytes_max * share
                if full or dispatcher.stopped is not None:
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
            if offset != self._reported.get(partition)
        }
        self._show_progress()
        if not offsets:
            return
        progress = dict(self._progress)
        verdict = await self._positions.advance(offsets)
        if verdict in (Verdict.WENT_BACK, Verdict.RESTARTED):
            await self._read_again(verdict)
        elif verdict is Verdict.ADVANCED:
            # What was revoked meanwhile may be another's, or ours anew with another start: its old offset is no news.
            offsets = {p: offset for p, offset in offsets.items() if self._progress.get(p) is progress[p]}
            self.reader.commit(offsets)
            self._reported.update(offsets)
        elif not self._fenced:
            log.warning("fenced", partitions=[f"{t}/{p}" for t, p in offsets])
        self._fenced = verdict is Verdict.FENCED

    def _committable(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        offsets = {}
        for partition in partitions:
            progress = self._progress.get(partition)
            if (
                partition not in self._recoveries
                and progress is not None
                and progress.committable is not None
            ):
                offsets[partition] = progress.committable
        return offsets

    async def _read_again(self, verdict: Verdict) -> None:
        """Read again from what this Redis says; where it went back, note that offsets cover only the log's writes."""
        went_back = verdict is Verdict.WENT_BACK
        if went_back:
            self._metrics.went_back.inc()
        partitions = self.owned
        self._seeks += 1
        for mirror in self._versions.all():
            mirror.dispatcher.abandon()
        for partition in partitions:
            self._progress[partition] = PartitionProgress()
        self._reported.clear()

        async def restore() -> Mapping[Partition, int | None]:
            await load_functions(self._parts.redis)
            await self._versions.restore()
            for mirror in self._versions.all() if went_back else ():
                await mirror.writer.mark_for_reconcile("redis_went_back")
            for anchors in self._parts.anchors.values():
                await anchors.store()
            return await self._positions.claim(partitions)

        # Until the seek nothing that is read is taken, so Redis is waited for here, should it leave again.
        applied = await self._patience.call("redis", restore)
        seeking = {f"{t}/{p}": applied[t, p] for t, p in partitions}
        if went_back:
            remedy = "livevec verify --repair, for what offsets do not cover"
            log.error("redis_went_back", seeking=seeking, remedy=remedy)
        else:
            log.warning("redis_restarted", seeking=seeking)
        # What was assigned meanwhile may have been read, and not taken, since this began.
        self.reader.seek(
            {partition: applied.get(partition, self._starts.get(partition)) for partition in self.owned}
        )

    async def _lost_history(self, partition: Partition, reason: str) -> None:
        for mirror in self._versions.of_topic(partition[0]):
            await self._patience.call("redis", mirror.writer.mark_for_reconcile, reason)

    def _show_progress(self) -> None:
        parts = self._progress.values()
        self._metrics.lag.set(sum(progress.pending for progress in parts))
        oldest_s = min((progress.oldest_s for progress in parts if progress.oldest_s), default=None)
        self._metrics.oldest.set(max(0.0, time.time() - oldest_s) if oldest_s else 0.0)
        for source in self._config.sources:
            topics = {self._config.topic(mirror.pipeline) for mirror in self._versions.of_source(source.name)}
            fresh_s = [p.fresh_through_s for (topic, _), p in self._progress.items() if topic in topics]
            if fresh_s:
                self._metrics.fresh_through.labels(source.name).set(min(fresh_s))

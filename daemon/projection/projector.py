"""The one place that orders effects: plan -> embed -> upsert -> acknowledge. Nothing else touches a row.

Used by the service for live changes and by workflow activities for rows read from the source.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from daemon.core.batching import Finished, Waiting
from daemon.core.change import Change, Operation, Outcome, Row
from daemon.core.document import Document, DocumentBuilder
from daemon.core.queue import Item, tokens_estimate
from daemon.core.version import SnapshotVersion, Version, replaces
from daemon.embedding.batches import EmbeddingBatches
from daemon.errors import FailureClass, RejectRow, RetryLater
from daemon.index.donor import VectorDonor
from daemon.index.writer import Delete, IndexWriter, Put, Result, Touch, Write
from daemon.patience import Patience
from daemon.telemetry.metrics import PipelineMetrics, Sample

SourceRow = tuple[str, Version, Row | None]
"""Document id, the row and the snapshot that it was read at (None: there was none); or an event and its place."""

INVISIBLE_PAUSE_S = 0.02
"""How long to wait before a row is read again whose change was not visible yet."""


@dataclass(slots=True, eq=False)
class Work:
    """One write on its way. `document` None: the row is gone. `rewrite`: write it whole, whatever is stored.
    `reused`: its vectors are another index version's."""

    item: Item
    version: Version
    document: Document | None
    chunks: Sequence[str] = ()
    unchanged: bool = False
    rewrite: bool = False
    reused: bool = False


@dataclass(slots=True)
class Clock:
    """Wall-clock moments of one batch, for the stages of its samples."""

    started_s: float
    embedded_s: float = 0.0
    embed_s: float = 0.0
    texts: int = 0
    tokens: int = 0
    oldest_s: float = field(default=float("inf"))

    def finished(self, now_s: float) -> Finished:
        return Finished(
            texts=self.texts,
            tokens=self.tokens,
            embed_s=self.embed_s,
            total_s=now_s - self.started_s,
            latency_s=max(0.0, now_s - self.oldest_s),
        )


class RowSource(Protocol):
    """Reads rows of the pipeline's table as they are now."""

    async def reread(self, keys: Sequence[tuple[str, ...]]) -> list[tuple[SnapshotVersion, Row | None]]:
        """The row of each key, with the snapshot it was read at; None where there is none."""
        ...


class DeadLetters(Protocol):
    """Where a refused row goes; returns once it is there for good."""

    async def put(self, item: Item, error: RejectRow) -> None: ...


@dataclass(slots=True)
class Processed:
    """What became of a batch: how long it took, and the items whose rows cannot be read yet."""

    finished: Finished
    later: list[Item]


@dataclass(frozen=True, slots=True)
class Projected:
    """What became of rows that were read from the source, by outcome, and what embedding them took."""

    outcomes: Counter[Outcome]
    finished: Finished


class Projector:
    """Projects changes of one pipeline into one index version.

    Args:
        builder: of documents.
        chunk: cuts a text into what is embedded.
        writer: of the index.
        embedding: see `EmbeddingBatches`.
        rows: for re-reading; None where the source cannot be asked (event topics).
        dead_letters: for rows that can never pass.
        patience: for parts that are away.
        metrics: of the pipeline.
        marker_ttl_s: lifetime of a delete marker.
        donor: another index version, whose vectors of the same text are taken instead of embedding it again.
    """

    def __init__(
        self,
        builder: DocumentBuilder,
        chunk: Callable[[str], Sequence[str]],
        writer: IndexWriter,
        embedding: EmbeddingBatches,
        rows: RowSource | None,
        dead_letters: DeadLetters,
        patience: Patience,
        metrics: PipelineMetrics,
        marker_ttl_s: float,
        donor: VectorDonor | None = None,
    ) -> None:
        self._builder = builder
        self._chunk = chunk
        self._writer = writer
        self._embedding = embedding
        self._rows = rows
        self._dead_letters = dead_letters
        self._patience = patience
        self._metrics = metrics
        self._marker_ttl_s = marker_ttl_s
        self._donor = donor

    async def process(
        self, items: Sequence[Item], on_embedded: Callable[[], None] = lambda: None
    ) -> Processed:
        """Bring every item's document up to date and settle its receipts.

        `on_embedded` is called once the embedder has done its part of the batch.

        Parts that are away are waited for; what can never pass is dead-lettered; a write that lost a race is
        planned again. When this returns, each item is settled or among `later`.

        Raises:
            StopPipeline: the source's table does not fit any more.
            StopProcess: a part is set up wrongly.
        """
        clock = Clock(started_s=time.time())
        work: list[Work] = []
        hints: list[Item] = []
        for item in items:
            if item.change.operation is Operation.TRUNCATE:
                await self._truncate(item)
            elif self._is_hint(item, clock.started_s):
                hints.append(item)
            else:
                work += await self._plan(item, item.change.version, item.change.row)
        later = await self._reread(hints, work) if hints else []
        while work:
            work = await self._apply(work, clock, on_embedded)
        return Processed(clock.finished(time.time()), later)

    async def project(
        self,
        rows: Sequence[SourceRow],
        rewrite: Collection[str] = (),
        on_embedded: Callable[[], None] = lambda: None,
    ) -> Projected:
        """Bring documents up to date with rows that were read from the source; counted by outcome, not as news.

        Args:
            rows: document id, snapshot that the row was read at, and the row; None: there was none.
            rewrite: documents to write whole even where their text has not changed, because they are damaged.
            on_embedded: called once the embedder has done its part.

        Raises:
            StopProcess: a part is set up wrongly.
        """
        clock = Clock(started_s=time.time())
        work: list[Work] = []
        items: list[Item] = []
        for identifier, version, row in rows:
            tokens = 0 if row is None else tokens_estimate(self._builder.text_size(row))
            waiting = Waiting(clock.started_s, clock.started_s, tokens)
            change = Change(
                Operation.REREAD, (), row, None, version.era, None, clock.started_s, clock.started_s
            )
            item = Item(identifier, change, [], None, waiting, 0)
            items.append(item)
            for one in await self._plan(item, version, row):
                one.rewrite = identifier in rewrite
                work.append(one)
        while work:
            work = await self._apply(work, clock, on_embedded)
        outcomes = Counter(item.outcome for item in items if item.outcome is not None)
        return Projected(outcomes, clock.finished(time.time()))

    def _is_hint(self, item: Item, now_s: float) -> bool:
        """Whether the row must be read from the source instead of taken from the change.

        A write older than half a marker's life is one: what would refuse it may have expired.
        """
        change = item.change
        if change.operation is Operation.REREAD:
            return True
        old = now_s - change.committed_at_s > self._marker_ttl_s / 2
        return old and change.operation is Operation.UPSERT and self._rows is not None

    async def _plan(self, item: Item, version: Version | None, row: Row | None) -> list[Work]:
        assert version is not None
        if row is None:
            return [Work(item, version, None)]
        try:
            document = self._builder.build(row)
        except RejectRow as error:
            await self.reject(item, error)
            return []
        chunks = self._chunk(document.text) if document.text.strip() else ()
        return [Work(item, version, document, chunks)]

    async def _reread(self, hints: Sequence[Item], work: list[Work]) -> list[Item]:
        """Read the rows of hints and add what is to be written; answers those whose change is not visible yet."""
        rows = self._rows
        assert rows is not None, "only a source that can be asked gives hints"
        found = await self._patience.call("source", lambda: rows.reread([h.change.key for h in hints]))
        later = []
        for item, (version, row) in zip(hints, found, strict=True):
            change = item.change
            if (
                change.wait_xid is not None
                and change.era == version.era
                and not version.sees(change.wait_xid)
            ):
                later.append(item)
            else:
                work += await self._plan(item, version, row)
        return later

    async def _apply(
        self, work: Sequence[Work], clock: Clock, on_embedded: Callable[[], None] = lambda: None
    ) -> list[Work]:
        """Plan, embed and write; answers what must be planned again."""
        stored = await self._patience.call(
            "redis", lambda: self._writer.lookup([one.item.id for one in work])
        )
        ready: list[tuple[Work, Write]] = []
        to_embed: list[Work] = []
        for one, before in zip(work, stored, strict=True):
            document = one.document
            if before is not None and not replaces(one.version, before.version):
                self._settle(one.item, Outcome.SUPERSEDED)
            elif document is None:
                marker_ttl_ms = int(self._marker_ttl_s * 1000)
                ready.append((one, Delete(one.item.id, one.version, marker_ttl_ms)))
            elif before is not None and before.content_hash == document.content_hash and not one.rewrite:
                one.unchanged = before.metadata_hash == document.metadata_hash
                ready.append((one, touch(one, document)))
            elif not one.chunks:
                ready.append((one, put(one, document, ())))
            else:
                to_embed.append(one)
        if self._donor is not None:
            to_embed = await self._reuse(self._donor, to_embed, ready)
        if not to_embed:
            on_embedded()
            return await self._write(ready, clock)
        # What needs no embedding is written while the rest is embedded.
        embedding = asyncio.ensure_future(self._embed(to_embed, clock))
        try:
            again = await self._write(ready, clock) if ready else []
            embedded = await embedding
            on_embedded()
        finally:
            embedding.cancel()
        return again + await self._write(embedded, clock)

    async def _reuse(
        self, donor: VectorDonor, work: Sequence[Work], ready: list[tuple[Work, Write]]
    ) -> list[Work]:
        """Add to `ready` what needs no embedding, since the donor has it; answers the rest."""
        # A document that is written whole because it is damaged may have its damage from there.
        asked = {
            one.item.id: one.document.content_hash
            for one in work
            if not one.rewrite and one.document is not None
        }
        found = await self._patience.call("redis", lambda: donor.vectors(list(asked.items())))
        vectors = dict(zip(asked, found, strict=True))
        rest = []
        for one in work:
            given = vectors.get(one.item.id, ())
            if one.document is not None and given and len(given) == len(one.chunks):
                one.reused = True
                ready.append((one, put(one, one.document, tuple(zip(one.chunks, given, strict=True)))))
            else:
                rest.append(one)
        return rest

    async def _embed(self, work: Sequence[Work], clock: Clock) -> list[tuple[Work, Write]]:
        """The finished writes of documents whose text changed; refused ones are dead-lettered."""
        result = await self._embedding.embed([chunk for one in work for chunk in one.chunks], self._patience)
        clock.embedded_s = time.time()
        clock.embed_s += result.embed_s
        clock.texts += result.texts
        clock.tokens += sum(one.item.waiting.tokens for one in work)
        ready: list[tuple[Work, Write]] = []
        at = 0
        for one in work:
            vectors = result.vectors[at : at + len(one.chunks)]
            at += len(one.chunks)
            refused = next((vector for vector in vectors if isinstance(vector, RejectRow)), None)
            if refused is not None:
                await self.reject(one.item, refused)
                continue
            assert one.document is not None
            pairs = tuple(
                (text, v) for text, v in zip(one.chunks, vectors, strict=True) if isinstance(v, bytes)
            )
            ready.append((one, put(one, one.document, pairs)))
        return ready

    async def _write(self, ready: Sequence[tuple[Work, Write]], clock: Clock) -> list[Work]:
        """Write until Redis has answered for each; settles what is done, answers what lost a race.

        In parts that Redis takes in one go: the first are searchable, and told so, before the last are sent.
        """
        conflicts: list[Work] = []
        rest = ready
        while rest:
            ready, rest = rest[: self._writer.commands_max], rest[self._writer.commands_max :]
            writes = [write for _, write in ready]
            results = await self._patience.call("redis", lambda writes=writes: self._writer.write(writes))  # type: ignore[misc]
            now_s = time.time()
            again: list[tuple[Work, Write]] = []
            waiting: RetryLater | None = None
            for (one, write), result in zip(ready, results, strict=True):
                if isinstance(result, RetryLater):
                    waiting = result
                    again.append((one, write))
                elif isinstance(result, RejectRow):
                    await self.reject(one.item, result)
                elif isinstance(result, FailureClass):
                    raise result
                elif result is Result.CONFLICT:
                    # Another text is stored by now, or a chunk is gone, which a look-up does not show.
                    one.rewrite = True
                    conflicts.append(one)
                else:
                    self._written(one, write, result, clock, now_s)
            if waiting is not None:
                await self._patience.call("redis", _failing_once(waiting))
                rest = [*again, *rest]
        return conflicts

    def _written(self, one: Work, write: Write, result: Result, clock: Clock, now_s: float) -> None:
        change = one.item.change
        live = change.operation is not Operation.REREAD or change.wait_xid is not None
        if live:
            clock.oldest_s = min(clock.oldest_s, change.committed_at_s)
        if result is Result.SUPERSEDED:
            outcome = Outcome.SUPERSEDED
        elif isinstance(write, Delete):
            outcome = Outcome.DELETED
        elif isinstance(write, Touch):
            outcome = Outcome.UNCHANGED if one.unchanged else Outcome.METADATA
        else:
            outcome = Outcome.REUSED if one.reused else Outcome.EMBEDDED
            if live and write.chunks:
                self._metrics.embedded(sample(one.item, clock, now_s))
        self._settle(one.item, outcome)

    async def _truncate(self, item: Item) -> None:
        """A floor in every bucket, then the sweep; acknowledged after it."""
        version = item.change.version
        if version is None:
            await self._patience.call(
                "redis", lambda: self._writer.mark_for_reconcile("truncate_without_position")
            )
        else:
            await self._patience.call("redis", lambda: self._writer.raise_floors(version))
            await self._patience.call("redis", lambda: self._writer.sweep(version))
        self._settle(item, Outcome.TRUNCATED)

    async def reject(self, item: Item, error: RejectRow) -> None:
        """Dead-letter an item and settle it."""
        await self._patience.call("dead_letters", lambda: self._dead_letters.put(item, error))
        self._metrics.all.dead_letters.labels(self._metrics.name, error.reason).inc()
        self._settle(item, Outcome.DEAD_LETTERED)

    def _settle(self, item: Item, outcome: Outcome) -> None:
        self._metrics.outcomes[outcome].inc()
        if len(item.receipts) > 1:
            self._metrics.outcomes[Outcome.COLLAPSED].inc(len(item.receipts) - 1)
        item.outcome = outcome
        for receipt in item.receipts:
            receipt.settle()


def _failing_once(error: RetryLater) -> Callable[[], Awaitable[None]]:
    """A call that fails with `error` the first time: makes Patience wait and show it."""
    failures = [error]

    async def call() -> None:
        if failures:
            raise failures.pop()

    return call


def put(one: Work, document: Document, chunks: tuple[tuple[str, bytes], ...]) -> Put:
    return Put(
        id=one.item.id,
        version=one.version,
        content_hash=document.content_hash,
        metadata_hash=document.metadata_hash,
        metadata=document.metadata,
        chunks=chunks,
    )


def touch(one: Work, document: Document) -> Touch:
    return Touch(
        id=one.item.id,
        version=one.version,
        content_hash=document.content_hash,
        metadata_hash=document.metadata_hash,
        metadata=document.metadata,
        absent=document.absent,
    )


def sample(item: Item, clock: Clock, now_s: float) -> Sample:
    change = item.change
    return Sample(
        id=item.id,
        committed_at=change.committed_at_s,
        total=now_s - change.committed_at_s,
        capture=max(0.0, change.appended_at_s - change.committed_at_s),
        transit=max(0.0, item.received_at_s - change.appended_at_s),
        queue=max(0.0, clock.started_s - item.received_at_s),
        embed=max(0.0, clock.embedded_s - clock.started_s),
        upsert=max(0.0, now_s - clock.embedded_s),
    )

"""The one place that orders effects: plan -> embed -> upsert -> acknowledge. Nothing else touches a row.

Used by the daemon for live changes, and by workflow activities and checks for rows that are read from the source.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from daemon.core import plan
from daemon.core.batching import Finished
from daemon.core.change import Change, Outcome, Row
from daemon.core.document import Document, DocumentBuilder
from daemon.core.plan import Step
from daemon.core.queue import tokens_estimate
from daemon.core.version import SnapshotVersion, Version
from daemon.core.work import Refusal, Work
from daemon.embedding.batches import EmbeddingBatches
from daemon.errors import FailureClass, RejectRow, RetryLater
from daemon.index.donor import VectorDonor
from daemon.index.writer import Delete, IndexWriter, Put, Result, Touch, Write
from daemon.patience import Patience
from daemon.telemetry.metrics import PipelineMetrics, Sample

SourceRow = tuple[str, Version, Row | None]
"""Document id, the row and the snapshot that it was read at (None: there was none); or an event and its place."""

Reread = tuple[SnapshotVersion, Row | None] | RejectRow
"""A row as it is now, with its snapshot (None: there is none), or why it cannot be read."""


class RowSource(Protocol):
    """Reads rows of the pipeline's table as they are now."""

    part: str
    """The source's name in the health."""

    async def reread_each(self, keys: Sequence[tuple[str, ...]]) -> list[Reread]:
        """Return the row of each key; one that cannot be read does not hold up its neighbours."""
        ...


class DeadLetters(Protocol):
    """Where a refused row goes."""

    async def put(self, refusal: Refusal, error: RejectRow) -> None:
        """Return once it is there for good."""
        ...


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

    def is_hint(self, change: Change, now_s: float) -> bool:
        """Return whether the change's row must be read from the source; see `plan.is_hint`."""
        return plan.is_hint(change, now_s, self._marker_ttl_s, self._rows is not None)

    async def process(
        self, works: Sequence[Work], on_embedded: Callable[[], None] = lambda: None
    ) -> Finished:
        """Bring every work's document up to date with its row.

        Parts that are away are waited for; what can never pass is dead-lettered; a write that lost a race is
        planned again. When this returns, each work is done.

        Args:
            on_embedded: called once the embedder has done its part of the batch.

        Raises:
            StopPipeline: the source's table does not fit any more.
            StopProcess: a part is set up wrongly.
        """
        clock = Clock(started_s=time.time())
        planned = [work for work in works if await self._render(work)]
        while planned:
            planned = await self._apply(planned, clock, on_embedded)
        return clock.finished(time.time())

    async def reread(
        self, hints: Sequence[Work], on_embedded: Callable[[], None] = lambda: None
    ) -> tuple[Finished, list[Work]]:
        """Read the rows of hints and process them; also return those whose change is not visible to a reader yet.

        Raises:
            StopPipeline, StopProcess: see `process`.
        """
        source = self._rows
        assert source is not None, "only a source that can be asked gives hints"
        changes = [hint.change for hint in hints if hint.change is not None]
        results = await self._patience.call(source.part, source.reread_each, [c.key for c in changes])
        ready: list[Work] = []
        invisible: list[Work] = []
        for work, change, result in zip(hints, changes, results, strict=True):
            if isinstance(result, RejectRow):
                await self._reject(work, result)
                continue
            snapshot, row = result
            if plan.is_visible(change, snapshot):
                work.version, work.row = snapshot, row
                ready.append(work)
            else:
                invisible.append(work)
        return await self.process(ready, on_embedded), invisible

    async def truncate(self, work: Work, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Put a floor into every bucket, then sweep what it beats; the work is done after the sweep.

        A floor is a version like any other, so changes from before and after the TRUNCATE may be written meanwhile.
        """
        version = work.version
        if version is None:
            await self._patience.call("redis", self._writer.mark_for_reconcile, "truncate_without_position")
        else:
            await self._patience.call("redis", self._writer.raise_floors, version)
            await self._patience.call("redis", self._writer.sweep, version, on_progress)
        self._settle(work, Outcome.TRUNCATED)

    async def project(
        self,
        rows: Sequence[SourceRow],
        rewrite: Collection[str] = (),
        on_embedded: Callable[[], None] = lambda: None,
    ) -> tuple[Counter[Outcome], Finished]:
        """Bring documents up to date with rows that were read from the source; they are no news.

        Returns what became of the rows, by outcome, and what embedding them took.

        Args:
            rows: document id, snapshot that the row was read at, and the row; None: there was none.
            rewrite: documents to write whole even where their text has not changed, because they are damaged.
            on_embedded: called once the embedder has done its part.

        Raises:
            StopProcess: a part is set up wrongly.
        """
        outcomes: Counter[Outcome] = Counter()

        def count(outcome: Outcome) -> None:
            outcomes[outcome] += 1

        read_at_s = time.time()
        works = [
            Work(
                id=identifier,
                version=version,
                row=row,
                done=count,
                tokens=0 if row is None else tokens_estimate(self._builder.text_size(row)),
                read_at_s=read_at_s,
                rewrite=identifier in rewrite,
            )
            for identifier, version, row in rows
        ]
        finished = await self.process(works, on_embedded)
        return outcomes, finished

    async def refuse(self, refusal: Refusal, error: RejectRow) -> None:
        """Write a dead letter, and count it."""
        await self._patience.call("dead_letters", self._dead_letters.put, refusal, error)
        self._metrics.all.dead_letters.labels(self._metrics.name, error.reason).inc()
        self._metrics.outcomes[Outcome.DEAD_LETTERED].inc()

    # ---- plan

    async def _render(self, work: Work) -> bool:
        """Make the document and its chunks; return whether there is anything to write."""
        if work.row is None:
            return True
        try:
            work.document = self._builder.build(work.row)
        except RejectRow as error:
            await self._reject(work, error)
            return False
        text = work.document.text
        work.chunks = self._chunk(text) if text.strip() else ()
        return True

    async def _apply(
        self, works: Sequence[Work], clock: Clock, on_embedded: Callable[[], None]
    ) -> list[Work]:
        """Plan, embed and write; return what must be planned again."""
        stored = await self._patience.call("redis", self._writer.lookup, [work.id for work in works])
        ready: list[tuple[Work, Write]] = []
        to_embed: list[Work] = []
        for work, before in zip(works, stored, strict=True):
            step = plan.next_step(work, before)
            if step is Step.NOTHING:
                self._settle(work, Outcome.SUPERSEDED)
            elif step is Step.EMBED:
                to_embed.append(work)
            else:
                stored_hash = None if before is None else before.metadata_hash
                work.unchanged = work.document is not None and work.document.metadata_hash == stored_hash
                ready.append((work, self._write_of(work, step)))
        if self._donor is not None:
            to_embed = await self._reuse(self._donor, to_embed, ready)
        if not to_embed:
            on_embedded()
            return await self._write(ready, clock)
        # What needs no embedding is written while the rest is embedded.
        embedding = asyncio.ensure_future(self._embed(to_embed, clock))
        try:
            conflicts = await self._write(ready, clock) if ready else []
            embedded = await embedding
            on_embedded()
        finally:
            embedding.cancel()
        return conflicts + await self._write(embedded, clock)

    def _write_of(self, work: Work, step: Step) -> Write:
        assert work.version is not None
        if step is Step.DELETE:
            return Delete(work.id, work.version, int(self._marker_ttl_s * 1000))
        document = work.document
        assert document is not None
        if step is Step.TOUCH:
            return Touch(
                id=work.id,
                version=work.version,
                content_hash=document.content_hash,
                metadata_hash=document.metadata_hash,
                metadata=document.metadata,
                absent=document.absent,
            )
        return _put(work, document, ())

    # ---- embed

    async def _reuse(
        self, donor: VectorDonor, works: Sequence[Work], ready: list[tuple[Work, Write]]
    ) -> list[Work]:
        """Add to `ready` what needs no embedding, since the donor has it; return the others."""
        # A document that is written whole because it is damaged may have its damage from there.
        hashes = {
            work.id: work.document.content_hash
            for work in works
            if not work.rewrite and work.document is not None
        }
        donated = await self._patience.call("redis", donor.vectors, list(hashes.items()))
        vectors = dict(zip(hashes, donated, strict=True))
        without: list[Work] = []
        for work in works:
            given = vectors.get(work.id, ())
            if work.document is not None and given and len(given) == len(work.chunks):
                work.reused = True
                ready.append((work, _put(work, work.document, tuple(zip(work.chunks, given, strict=True)))))
            else:
                without.append(work)
        return without

    async def _embed(self, works: Sequence[Work], clock: Clock) -> list[tuple[Work, Write]]:
        """Return the finished writes of documents whose text changed; refused ones are dead-lettered."""
        texts = [chunk for work in works for chunk in work.chunks]
        result = await self._embedding.embed(texts, self._patience)
        clock.embedded_s = time.time()
        clock.embed_s += result.embed_s
        clock.texts += result.texts
        clock.tokens += sum(work.tokens for work in works)
        ready: list[tuple[Work, Write]] = []
        at = 0
        for work in works:
            vectors = result.vectors[at : at + len(work.chunks)]
            at += len(work.chunks)
            refused = next((vector for vector in vectors if isinstance(vector, RejectRow)), None)
            if refused is not None:
                await self._reject(work, refused)
                continue
            assert work.document is not None
            pairs = tuple(
                (text, vector)
                for text, vector in zip(work.chunks, vectors, strict=True)
                if isinstance(vector, bytes)
            )
            ready.append((work, _put(work, work.document, pairs)))
        return ready

    # ---- upsert and acknowledge

    async def _write(self, ready: Sequence[tuple[Work, Write]], clock: Clock) -> list[Work]:
        """Write until Redis has answered for each; settle what is done, return what lost a race.

        In parts that Redis takes in one go: the first are searchable, and acknowledged, before the last are sent.
        """
        conflicts: list[Work] = []
        waiting = ready
        while waiting:
            part, waiting = waiting[: self._writer.commands_max], waiting[self._writer.commands_max :]
            results = await self._patience.call("redis", self._writer.write, [write for _, write in part])
            now_s = time.time()
            postponed: list[tuple[Work, Write]] = []
            away: RetryLater | None = None
            for (work, write), result in zip(part, results, strict=True):
                if isinstance(result, RetryLater):
                    away = result
                    postponed.append((work, write))
                elif isinstance(result, RejectRow):
                    await self._reject(work, result)
                elif isinstance(result, FailureClass):
                    raise result
                elif result is Result.CONFLICT:
                    # Another text is stored by now, or a chunk is gone, which a look-up does not show.
                    work.rewrite = True
                    conflicts.append(work)
                else:
                    self._written(work, write, result, clock, now_s)
            if away is not None:
                await self._patience.wait_out("redis", away)
                waiting = [*postponed, *waiting]
        return conflicts

    def _written(self, work: Work, write: Write, result: Result, clock: Clock, now_s: float) -> None:
        change = work.change
        if change is not None and work.is_live:
            clock.oldest_s = min(clock.oldest_s, change.committed_at_s)
        if result is Result.SUPERSEDED:
            self._settle(work, Outcome.SUPERSEDED)
            return
        step = _STEPS[type(write)]
        outcome = plan.outcome(work, step)
        if outcome is Outcome.EMBEDDED and work.chunks and change is not None and work.is_live:
            self._metrics.embedded(_sample(work, change, clock, now_s))
        self._settle(work, outcome)

    async def _reject(self, work: Work, error: RejectRow) -> None:
        """Dead-letter a work; it is done."""
        await self.refuse(work.refusal(), error)
        work.done(Outcome.DEAD_LETTERED)

    def _settle(self, work: Work, outcome: Outcome) -> None:
        self._metrics.outcomes[outcome].inc()
        work.done(outcome)


_STEPS = {Delete: Step.DELETE, Touch: Step.TOUCH, Put: Step.EMBED}


def _put(work: Work, document: Document, chunks: tuple[tuple[str, bytes], ...]) -> Put:
    assert work.version is not None
    return Put(
        id=work.id,
        version=work.version,
        content_hash=document.content_hash,
        metadata_hash=document.metadata_hash,
        metadata=document.metadata,
        chunks=chunks,
    )


def _sample(work: Work, change: Change, clock: Clock, now_s: float) -> Sample:
    return Sample(
        id=work.id,
        committed_at=change.committed_at_s,
        total=now_s - change.committed_at_s,
        capture=max(0.0, change.appended_at_s - change.committed_at_s),
        transit=max(0.0, work.received_at_s - change.appended_at_s),
        queue=max(0.0, clock.started_s - work.received_at_s),
        embed=max(0.0, clock.embedded_s - clock.started_s),
        upsert=max(0.0, now_s - clock.embedded_s),
    )

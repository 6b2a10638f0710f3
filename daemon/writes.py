"""Writes on their way into the index, and the clock of the batch that they are in."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.core.batching import Finished
from daemon.core.document import Document
from daemon.core.queue import Item
from daemon.core.version import Version
from daemon.index.writer import Put, Touch
from daemon.telemetry.metrics import Sample


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

"""Which offset may be committed: the end of the contiguous prefix whose effects are acknowledged."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class PartitionProgress:
    """Offsets of one partition under one assignment; offsets may have holes (compaction, transactions).

    A new assignment gets a new object, so that an acknowledgement from before a revocation moves nothing.

    Attributes:
        committable: the offset to commit (next to be read); None before anything was read.
        fresh_through_s: commit time of the newest change in the acknowledged prefix; 0.0 before the first.
    """

    committable: int | None = None
    fresh_through_s: float = 0.0
    _pending: deque[tuple[int, float]] = field(default_factory=deque)
    _done: set[int] = field(default_factory=set)
    _next: int = -1

    def read(self, offset: int, committed_at_s: float = 0.0) -> None:
        """Note a record that was read; offsets come in order."""
        if self.committable is None:
            self.committable = offset
        self._pending.append((offset, committed_at_s))
        self._next = offset + 1

    def done(self, offset: int) -> None:
        """Note that a record's effects are acknowledged; in any order, each once."""
        self._done.add(offset)
        pending = self._pending
        while pending and pending[0][0] in self._done:
            first, committed_at_s = pending.popleft()
            self._done.discard(first)
            self.fresh_through_s = max(self.fresh_through_s, committed_at_s)
            self.committable = pending[0][0] if pending else self._next

    def idle_at(self, now_s: float) -> None:
        """Note that the source had nothing else before `now_s` (a heartbeat); counts only when all is done."""
        if not self._pending:
            self.fresh_through_s = max(self.fresh_through_s, now_s)

    @property
    def oldest_s(self) -> float:
        """Commit time of the first unacknowledged change; 0.0 if there is none, or it is not known."""
        return self._pending[0][1] if self._pending else 0.0

    @property
    def pending(self) -> int:
        """Records from the first unacknowledged one on."""
        return len(self._pending)


@dataclass(slots=True, eq=False)
class Receipt:
    """What a record's readers owe: each settles once, and the last one acknowledges the offset."""

    progress: PartitionProgress
    offset: int
    readers: int = 1

    def settle(self) -> None:
        self.readers -= 1
        if self.readers == 0:
            self.progress.done(self.offset)

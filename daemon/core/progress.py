"""Which offset may be committed: the end of the contiguous prefix whose effects are acknowledged."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class PartitionProgress:
    """The offsets of one partition under one assignment; they may have holes (compaction, transactions).

    A new assignment gets a new object, so that an acknowledgement from before a revocation moves nothing.

    Attributes:
        committable: the offset to commit (next to be read); None before anything was read.
        fresh_through_s: commit time of the newest change in the acknowledged prefix; 0.0 before the first.
    """

    committable: int | None = None
    fresh_through_s: float = 0.0
    _pending: "deque[Receipt]" = field(default_factory=deque)

    def read(self, offset: int, readers: int = 1) -> "Receipt":
        """Note a record that was read, and return its receipt; offsets come in order.

        Args:
            readers: how many have to settle the receipt.
        """
        if self.committable is None:
            self.committable = offset
        receipt = Receipt(self, offset, readers)
        self._pending.append(receipt)
        return receipt

    def advance(self) -> None:
        """Move on past the records at the front whose effects are acknowledged."""
        pending = self._pending
        while pending and pending[0].readers == 0:
            receipt = pending.popleft()
            self.fresh_through_s = max(self.fresh_through_s, receipt.committed_at_s)
            self.committable = pending[0].offset if pending else receipt.offset + 1

    def idle_at(self, now_s: float) -> None:
        """Note that the source had nothing else before `now_s`; it counts only when all is done."""
        if not self._pending:
            self.fresh_through_s = max(self.fresh_through_s, now_s)

    @property
    def oldest_s(self) -> float:
        """Commit time of the first unacknowledged change; 0.0 if there is none, or it is not known."""
        return self._pending[0].committed_at_s if self._pending else 0.0

    @property
    def pending(self) -> int:
        """Records from the first unacknowledged one on."""
        return len(self._pending)


@dataclass(slots=True, eq=False)
class Receipt:
    """What a record's readers owe: each settles once, and the last one acknowledges the offset.

    Attributes:
        committed_at_s: commit time of the record's change; 0.0 while it is not known.
    """

    progress: PartitionProgress
    offset: int
    readers: int
    committed_at_s: float = 0.0

    def settle(self) -> None:
        self.readers -= 1
        if self.readers == 0:
            self.progress.advance()

"""What waits for a batch: oldest first, several changes of one key collapsed into the newest."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from daemon.core.batching import Waiting
from daemon.core.change import Change
from daemon.core.progress import Receipt
from daemon.errors import RejectRow

_TOKENS_PER_BYTE = 0.25
_ITEM_BYTES = 800
"""About what a change costs besides its record and its row."""


@dataclass(slots=True, eq=False)
class Item:
    """One document that waits to be brought up to date, and the records that asked for it. Belongs to the live shell.

    Attributes:
        id: of the document; empty for TRUNCATE.
        change: the newest.
        receipts: one per record, settled once its effect is in the index; the newest change's is first.
        record: the newest change's raw record, for a dead letter; opaque here.
        waiting: what the policy sees.
        received_at_s: when the newest was received, by the wall clock.
        refused: why the record could not be decoded; None: it could.
        is_settled: whether its receipts are settled.
    """

    id: str
    change: Change
    receipts: list[Receipt]
    record: object
    waiting: Waiting
    size_bytes: int
    received_at_s: float = 0.0
    refused: RejectRow | None = None
    is_settled: bool = False

    def settle(self) -> None:
        """Acknowledge the records that asked for it."""
        self.is_settled = True
        for receipt in self.receipts:
            receipt.settle()


@dataclass(slots=True)
class ChangeQueue:
    """Bounded by its owner: `changes` and `size_bytes` tell how full it is.

    Attributes:
        changes: records waiting, collapsed ones counted.
        size_bytes: of those records.
    """

    changes: int = 0
    size_bytes: int = 0
    _order: dict[Hashable, Item] = field(default_factory=dict)
    _unkeyed: int = 0

    def __len__(self) -> int:
        return len(self._order)

    def put(self, item: Item) -> bool:
        """Add a change; answers whether it collapsed with one that waits.

        Only changes whose place in the log is known collapse: the newer one then says all that both say. The
        place in the queue, and with it the deadline, stays that of the older.
        """
        self.changes += len(item.receipts)
        self.size_bytes += item.size_bytes
        version = item.change.version
        if version is None or not item.id:
            self._unkeyed += 1
            self._order[self._unkeyed] = item
            return False
        older = self._order.get(item.id)
        if older is None:
            self._order[item.id] = item
            return False
        assert older.change.version is not None
        newest, other = (item, older) if _place(item) >= _place(older) else (older, item)
        self._order[item.id] = Item(
            id=item.id,
            change=newest.change,
            receipts=newest.receipts + other.receipts,
            record=newest.record,
            waiting=Waiting(older.waiting.arrived_s, older.waiting.deadline_s, newest.waiting.tokens),
            size_bytes=item.size_bytes + older.size_bytes,
            received_at_s=newest.received_at_s,
        )
        return True

    def waiting(self, count_max: int) -> list[Waiting]:
        """The oldest, as a policy sees them."""
        return [item.waiting for item in islice(self._order.values(), count_max)]

    def take(self, count: int) -> list[Item]:
        """Remove and answer the oldest."""
        keys = list(islice(self._order, count))
        items = [self._order.pop(key) for key in keys]
        for item in items:
            self.changes -= len(item.receipts)
            self.size_bytes -= item.size_bytes
        return items

    def __iter__(self) -> Iterator[Item]:
        return iter(self._order.values())


def tokens_estimate(size_bytes: int) -> int:
    """Tokens of a text of so many bytes, roughly; the cost model learns the rest."""
    return max(4, int(size_bytes * _TOKENS_PER_BYTE))


def size_estimate(record_bytes: int) -> int:
    """Memory that a waiting change takes, roughly: the record as it came, and the row that was read from it."""
    return 2 * record_bytes + _ITEM_BYTES


def _place(item: Item) -> tuple[int, int, int]:
    version = item.change.version
    assert version is not None
    return version.era, version.commit_lsn, version.lsn

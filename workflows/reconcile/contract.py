"""What the activities of a reconcile take and give: keys, positions and counts."""

from daemon.index.keyspace import WalkPosition
from daemon.verify.differences import Tally
from daemon.verify.sides import Key
from workflows.progress import Contract


class Subject(Contract):
    """What is reconciled, and how.

    Attributes:
        version: of the index; None: the one that readers see.
        repair: mend what differs.
        vectors: read the documents whole, embed their texts again and compare the vectors.
        lag_s: how long a change may be on its way before its document counts as different.
        rows_per_range: about, in a small table; the ranges of a large one are larger, so that they are not too many.
    """

    pipeline: str
    version: int | None = None
    repair: bool = False
    vectors: bool = False
    lag_s: float = 30.0
    rows_per_range: int = 20_000


class ReconcilePlan(Contract):
    """What a reconcile keeps from its start to its end.

    Attributes:
        version: of the index.
        bounds: keys that cut the table into ranges; the last range has no end.
        rows: estimated.
        reasons: why a reconcile was due at the start.
    """

    version: int
    bounds: tuple[Key, ...]
    rows: int
    reasons: tuple[str, ...]


class RangeOrder(Contract):
    """One key range: rows after `after` up to `until`. `rate`: most rows a second."""

    subject: Subject
    after: Key | None
    until: Key | None
    rate: float | None = None


class KeysOrder(Contract):
    """The keys that Redis has. `position`: None: from the beginning."""

    subject: Subject
    position: WalkPosition | None
    rate: float | None = None


class Conclusion(Contract):
    """What the run came to, for metrics and log.

    Attributes:
        reasons: why a reconcile was due: differences were to be expected.
        seconds: it took.
    """

    pipeline: str
    repair: bool
    reasons: tuple[str, ...]
    seconds: float
    tally: Tally

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
    """What a reconcile keeps from its start to its end; `bounds`, `reasons`: see `BackfillPlan`; `rows`: estimated."""

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
    """What the run came to, for metrics and log; `reasons`: why it was due, and differences were to be expected."""

    pipeline: str
    repair: bool
    reasons: tuple[str, ...]
    seconds: float
    tally: Tally


class Reconciled(Conclusion):
    """What a reconcile came to; `backfilled`: a full backfill went first and dealt with the reasons."""

    version: int
    backfilled: bool

    @property
    def ok(self) -> bool:
        """Nothing is different, and no reason is left."""
        return not self.tally.left and (self.backfilled or not self.reasons)

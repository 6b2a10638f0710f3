"""What the activities of a backfill take and give: keys, positions and counts."""

from pydantic import Field

from daemon.verify.refill import KeyRange
from daemon.verify.sides import Key
from workflows.progress import Contract


class Target(Contract):
    """What is to be backfilled.

    Attributes:
        version: of the index; None: the one that readers see.
        where: an SQL condition over the table's columns; None: all rows.
        from_key: the document id to begin with; None: the first.
    """

    pipeline: str
    version: int | None = None
    where: str | None = None
    from_key: str | None = None

    @property
    def full(self) -> bool:
        return self.where is None and self.from_key is None


class BackfillPlan(Contract):
    """What a backfill keeps from its start to its end.

    Attributes:
        version: of the index.
        table: fingerprint of the table's key and of the columns that are used.
        bounds: keys that cut the table into ranges; the last range has no end.
        first: key to begin with.
        total: rows, estimated.
        reasons: why a reconcile was due at the start, of the version that readers see.
        marks: the same, each with the time since when; empty in what an older build planned.
        note: what a person should know.
    """

    version: int
    table: str
    bounds: tuple[Key, ...]
    first: Key | None
    total: int
    reasons: tuple[str, ...]
    marks: dict[str, float] = Field(default_factory=dict)
    note: str = ""


class BarrierLook(Contract):
    """`begun`: what is waited for; None: begin. `seen`: the transactions that were shown last."""

    pipeline: str
    version: int
    begun: int | None
    seen: tuple[str, ...]


class BarrierSeen(Contract):
    """`snapshot`: it sees all that ran at the start; None: `blocking` still run."""

    begun: int
    snapshot: str | None
    blocking: tuple[str, ...] = ()


class CopyOrder(KeyRange):
    """One slice of work: rows of one key range, as many as fit into `limit_s`. `table`: see BackfillPlan."""

    pipeline: str
    version: int
    table: str


class Closing(Contract):
    """The floor and the sweep of a full backfill.

    Attributes:
        snapshot: S0: what is older and was not read has no row.
        reasons, marks: see BackfillPlan; only a mark that is still that one is cleared.
    """

    pipeline: str
    version: int
    snapshot: str
    reasons: tuple[str, ...]
    marks: dict[str, float] = Field(default_factory=dict)


class Swept(Contract):
    """How many documents and markers were removed."""

    removed: int

"""What the activities of a backfill take and give: keys, positions and counts."""

from pydantic import Field

from workflows.progress import Contract

Key = tuple[str, ...]
"""Values of the primary key's columns as text, in the key's order."""


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


class Plan(Contract):
    """What a backfill holds on to from its start to its end.

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
    """`begun`: what is waited for; None: begin. `seen`: the transactions that were told of last."""

    pipeline: str
    version: int
    begun: int | None
    seen: tuple[str, ...]


class BarrierSeen(Contract):
    """`snapshot`: it sees all that ran at the start; None: `blocking` still run."""

    begun: int
    snapshot: str | None
    blocking: tuple[str, ...] = ()


class CopyOrder(Contract):
    """One slice of work: rows of one key range, as many as fit into `limit_s`.

    Attributes:
        table: see Plan.
        after: key to go on from.
        inclusive: begin with `after` itself.
        until: the last key of the range.
        rate: most rows a second.
        rows_per_read: to begin with.
    """

    pipeline: str
    version: int
    table: str
    where: str | None
    after: Key | None
    inclusive: bool
    until: Key | None
    rate: float | None
    rows_per_read: int
    limit_s: float


class Copied(Contract):
    """What a slice has done so far: also what its heartbeats carry, and another attempt goes on from.

    Attributes:
        after: up to this key every row's effect is in Redis, and on its disk where Redis can tell.
        ended: the range was read to its end.
        rows: read, those that were refused included.
        outcomes: of the rows, by name.
        unreadable: rows that could not be read or decoded; each has a dead letter.
        skipped: the rest of the range could not be read at all.
        rate_per_s: rows a second, lately.
        rows_per_read: what suits this table and this embedder.
        note: what a person should know.
    """

    after: Key | None = None
    ended: bool = False
    rows: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict)
    unreadable: int = 0
    skipped: bool = False
    rate_per_s: float | None = None
    rows_per_read: int
    note: str = ""


class Closing(Contract):
    """The floor and the sweep of a full backfill.

    Attributes:
        snapshot: S0: what is older and was not read has no row.
        reasons: why a reconcile was due at the start; dealt with by now.
        marks: the same, each with the time since when; only a mark that is still that one is cleared.
    """

    pipeline: str
    version: int
    snapshot: str
    reasons: tuple[str, ...]
    marks: dict[str, float] = Field(default_factory=dict)


class Swept(Contract):
    """How many documents and markers were removed."""

    removed: int

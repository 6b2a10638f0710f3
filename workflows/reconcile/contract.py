"""What the activities of a reconcile take and give: keys, positions and counts."""

from collections import Counter
from collections.abc import Iterable, Mapping

from pydantic import Field

from daemon.index.keyspace import WalkPosition
from daemon.verify.differences import EXAMPLES_MAX, Difference
from workflows.progress import Contract

Key = tuple[str, ...]
"""Values of the primary key's columns as text, in the key's order."""


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


class Tally(Contract):
    """What was seen, found, mended and left so far.

    Attributes:
        rows: compared.
        documents: seen in Redis.
        refused: rows that can never be documents (they are dead letters); no difference.
        found: documents by difference; one may show several.
        left: the same after the repair; without one, what was found.
        outcomes: of the repair's writes.
        pruned: single chunks and foreign keys that were removed.
        examples: ids of some of what was found, by difference.
    """

    rows: int = 0
    documents: int = 0
    refused: int = 0
    found: dict[str, int] = Field(default_factory=dict)
    left: dict[str, int] = Field(default_factory=dict)
    outcomes: dict[str, int] = Field(default_factory=dict)
    pruned: int = 0
    examples: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def plus(self, other: "Tally") -> "Tally":
        names = dict.fromkeys((*self.examples, *other.examples))
        return Tally(
            rows=self.rows + other.rows,
            documents=self.documents + other.documents,
            refused=self.refused + other.refused,
            found=_sum(self.found, other.found),
            left=_sum(self.left, other.left),
            outcomes=_sum(self.outcomes, other.outcomes),
            pruned=self.pruned + other.pruned,
            examples={
                name: (*self.examples.get(name, ()), *other.examples.get(name, ()))[:EXAMPLES_MAX]
                for name in names
            },
        )


def counted(told: Mapping[str, frozenset[Difference]], kinds: frozenset[Difference]) -> dict[str, int]:
    """Documents by difference, of these kinds alone."""
    return dict(Counter(kind.value for shown in told.values() for kind in sorted(shown & kinds)))


def examples(
    told: Mapping[str, frozenset[Difference]], kinds: Iterable[Difference]
) -> dict[str, tuple[str, ...]]:
    found = {kind.value: sorted(one for one, shown in told.items() if kind in shown) for kind in kinds}
    return {name: tuple(ids[:EXAMPLES_MAX]) for name, ids in found.items() if ids}


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))


class Plan(Contract):
    """What a reconcile holds on to from its start to its end.

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


class RangeChecked(Contract):
    """How far a range was checked: also what heartbeats carry. `after`: up to this key it is done with."""

    after: Key | None
    ended: bool = False
    tally: Tally = Tally()


class KeysOrder(Contract):
    """The keys that Redis has. `position`: None: from the beginning."""

    subject: Subject
    position: WalkPosition | None
    rate: float | None = None


class KeysChecked(Contract):
    """How far the keys were checked: also what heartbeats carry."""

    position: WalkPosition | None
    ended: bool = False
    tally: Tally = Tally()


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

"""What may differ between a table and its index, and what a check counted and found of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, Field

EXAMPLES_MAX = 10


class Difference(StrEnum):
    """A document may show several of them."""

    MISSING = "missing"
    """A row has no document."""
    STALE = "stale"
    """The document is not what the row renders to."""
    ORPHANED = "orphaned"
    """A document has no row."""
    WRONG_VECTOR = "wrong_vector"
    """The stored vector is not the embedding of the stored text."""
    NOT_INDEXED = "not_indexed"
    """Redis holds the document, but a search does not find it."""
    SURPLUS_CHUNKS = "surplus_chunks"
    """There are chunks beyond those that the document has."""
    LOST_CHUNKS = "lost_chunks"
    """A chunk of the document is gone."""


Differences = Mapping[str, frozenset[Difference]]
"""The differences of each document, by its id."""


class Tally(BaseModel, frozen=True):
    """What was seen, found, mended and left so far.

    Attributes:
        rows: compared.
        documents: seen in Redis.
        refused: rows that can never be documents (they are dead letters); no difference.
        found: documents by difference; one may show several.
        left: the same after the repair; without a repair, what was found.
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
            found=added(self.found, other.found),
            left=added(self.left, other.left),
            outcomes=added(self.outcomes, other.outcomes),
            pruned=self.pruned + other.pruned,
            examples={
                name: (*self.examples.get(name, ()), *other.examples.get(name, ()))[:EXAMPLES_MAX]
                for name in names
            },
        )


def added(counts: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(counts) + Counter(others))


def counted(differences: Differences, kinds: frozenset[Difference]) -> dict[str, int]:
    """Count the documents by difference, of these kinds alone."""
    return dict(Counter(kind.value for shown in differences.values() for kind in sorted(shown & kinds)))


def examples(differences: Differences, kinds: frozenset[Difference]) -> dict[str, tuple[str, ...]]:
    """Return the first ids of each kind."""
    ids = {
        kind.value: sorted(identifier for identifier, shown in differences.items() if kind in shown)
        for kind in kinds
    }
    return {name: tuple(named[:EXAMPLES_MAX]) for name, named in ids.items() if named}


@dataclass(frozen=True)
class IndexFindings:
    """What one check found, document by document.

    Attributes:
        rows: of the table.
        documents: that Redis holds, by their bookkeeping.
        refused: rows that can never be documents (they are dead-lettered); no difference.
        differing: by document id.
        foreign_keys: Redis keys among the documents that livevec did not write; each is an orphan too.
    """

    pipeline: str
    rows: int
    documents: int
    refused: int
    differing: Differences
    foreign_keys: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.differing and not self.foreign_keys

    def ids(self, difference: Difference) -> list[str]:
        """Return the documents that show it, in the order of their ids."""
        ids = sorted(identifier for identifier, shown in self.differing.items() if difference in shown)
        return [*ids, *self.foreign_keys] if difference is Difference.ORPHANED else ids

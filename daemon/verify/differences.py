"""What may differ between a table and its index, and the report of a check."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

EXAMPLES_MAX = 10


class Difference(StrEnum):
    """A document may show several of them."""

    MISSING = "missing"
    """A row without a document."""
    STALE = "stale"
    """The document is not what the row renders to."""
    ORPHANED = "orphaned"
    """A document without a row."""
    WRONG_VECTOR = "wrong_vector"
    """The stored vector is not the embedding of the stored text."""
    NOT_INDEXED = "not_indexed"
    """Redis holds the document, but a search does not find it."""
    SURPLUS_CHUNKS = "surplus_chunks"
    """Chunks beyond those that the document has."""
    LOST_CHUNKS = "lost_chunks"
    """A chunk of the document is gone."""


@dataclass(frozen=True)
class Report:
    """What one check found.

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
    differing: Mapping[str, frozenset[Difference]]
    foreign_keys: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.differing and not self.foreign_keys

    def ids(self, difference: Difference) -> list[str]:
        """Documents that show it, in the order of their ids."""
        found = sorted(identifier for identifier, shown in self.differing.items() if difference in shown)
        return [*found, *self.foreign_keys] if difference is Difference.ORPHANED else found

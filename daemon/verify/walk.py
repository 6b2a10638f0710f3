"""What Redis holds and the table does not ask for: orphans, surplus chunks, keys of somebody else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.projection.build import TableRows
from daemon.verify.subject import Subject, key_rows, reread

KEYS_PER_STEP = 1000


@dataclass(frozen=True)
class Found:
    """Of one step.

    Attributes:
        documents: how many of the keys were a document's bookkeeping.
        orphaned: documents whose row is not there.
        surplus: chunk numbers beyond those of their document.
        foreign: keys that livevec did not write.
    """

    documents: int
    orphaned: set[str]
    surplus: dict[str, set[int]]
    foreign: list[str] = field(default_factory=list)

    @property
    def suspects(self) -> set[str]:
        return self.orphaned | self.surplus.keys()


class Walk:
    """Asks the table for the keys that Redis has, a step at a time, so that no list of all keys is held."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._keys: TableRows = key_rows(subject)

    async def look(self, keys: Sequence[str]) -> Found:
        """Sort out some keys of the index version; what is told may be a change on its way."""
        stored = self._subject.stored
        sorted_out = stored.sorted_out(keys)
        kept = await stored.bookkeeping(sorted_out.documents)
        present = [
            one for one, held in zip(sorted_out.documents, kept, strict=True) if held.digests is not None
        ]
        rows = await reread(self._subject, present, self._keys) if present else []
        surplus: dict[str, set[int]] = {}
        counts = await stored.chunk_counts([one for one, _ in sorted_out.chunks])
        for (one, number), count in zip(sorted_out.chunks, counts, strict=True):
            if number >= (count or 0):
                surplus.setdefault(one, set()).add(number)
        orphaned = {one for one, _, row in rows if row is None}
        return Found(len(present), orphaned, surplus, sorted_out.foreign)

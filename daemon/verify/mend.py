"""Mends what a check found, document by document, under the version rule; live changes go on meanwhile."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from daemon.core.change import Outcome
from daemon.projection.slow_lane import SlowLane
from daemon.verify.subject import ROWS_PER_CHUNK, Subject, reread


class Mender:
    """Writes through the slow lane what the rows say now."""

    def __init__(self, subject: Subject, lane: SlowLane) -> None:
        self._subject = subject
        self._lane = lane

    async def documents(self, ids: Collection[str]) -> Counter[Outcome]:
        """Write these documents whole from their rows; delete those whose row is not there.

        A deletion carries the snapshot that did not see the row, so it removes nothing that was inserted after it,
        and leaves a marker that no older change passes.

        Raises:
            FailureClass: a part failed; what was done is no harm, and may be done again.
        """
        outcomes: Counter[Outcome] = Counter()
        ordered = sorted(ids)
        for start in range(0, len(ordered), ROWS_PER_CHUNK):
            rows = await reread(self._subject, ordered[start : start + ROWS_PER_CHUNK])
            outcomes += await self._lane.project(rows, rewrite=ids)
        return outcomes

    async def hashes(self, surplus: Mapping[str, Iterable[int]], foreign: Collection[str]) -> int:
        """Remove chunks that their document does not have, and keys that livevec did not write; how many."""
        pruned = await self._subject.stored.prune(
            [(one, number) for one, numbers in surplus.items() for number in sorted(numbers)]
        )
        await self._subject.stored.remove(list(foreign))
        return pruned + len(foreign)

"""A key range, and the keys that Redis has, on their way through a check: look, look again, mend, move on.

What was looked at and not yet settled is held, at most so much; a position moves on only past what is settled, so
that another attempt misses nothing.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from daemon.errors import RejectRow, StopPipeline
from daemon.index.durability import Durability
from daemon.index.keyspace import KEYS_PER_STEP, WalkPosition
from daemon.projection.slow_lane import EmbedderShare, SlowLane
from daemon.verify.comparison import RowComparison, Wanted
from daemon.verify.differences import Difference, Differences, Tally, added, counted, examples
from daemon.verify.looks import SecondLooks
from daemon.verify.pace import Interruption, Rate
from daemon.verify.sides import ROWS_PER_CHUNK, Key, Sides

OF_KEYS = frozenset({Difference.ORPHANED, Difference.SURPLUS_CHUNKS})
"""Found by the walk through Redis' keys; all others by the rows, so that none is counted twice."""
OF_ROWS = frozenset(Difference) - OF_KEYS
DOCUMENTS_GUARDED_MIN = 100
"""A smaller index may be emptied."""
_SUSPECTS_MAX = 2_000
_UNSETTLED_S_MAX = 10.0


def refuse_emptying(pipeline: str, removed: int, documents: int) -> None:
    """Keep a repair from removing most of an index: then the table is more likely to be the wrong one.

    Raises:
        StopPipeline: more than half of at least a hundred documents would go.
    """
    if documents >= DOCUMENTS_GUARDED_MIN and 2 * removed > documents:
        raise StopPipeline(
            f"this would remove {removed:,} or more of the {documents:,} documents of index {pipeline!r}, because "
            "their rows are not in the table; nothing more was removed. Check that the source's dsn leads to the right "
            f"database and that the table is whole; if it is, run `livevec verify {pipeline} --repair --yes`"
        )


class Mender:
    """Writes through the slow lane what the rows say now, under the version rule; live changes go on meanwhile.

    Args:
        durability: begun before the first write.
        may_empty: remove orphans also where they are most of the index.
    """

    def __init__(
        self, sides: Sides, lane: SlowLane, durability: Durability, *, may_empty: bool = False
    ) -> None:
        self._sides = sides
        self._lane = lane
        self._durability = durability
        self._may_empty = may_empty
        self._documents: int | None = None

    async def mend(
        self,
        differing: Differences,
        surplus: Mapping[str, Iterable[int]],
        foreign: Sequence[str],
        removed_before: int,
    ) -> Tally:
        """Write these documents whole from their rows, delete those without one, remove hashes that belong to none.

        A deletion carries the snapshot that did not see the row, so it removes nothing that was inserted after it,
        and leaves a marker that no older change passes.

        Args:
            surplus: numbers of chunks beyond those of their document.
            foreign: keys that livevec did not write.
            removed_before: orphans that this check has removed so far.

        Raises:
            FailureClass: a part failed; what was done is no harm, and may be done again.
            StopPipeline: most of the index would be removed.
        """
        orphans = sum(Difference.ORPHANED in shown for shown in differing.values())
        await self._refuse_emptying(orphans, removed_before)
        outcomes: dict[str, int] = {}
        ordered = sorted(differing)
        for start in range(0, len(ordered), ROWS_PER_CHUNK):
            rows = await self._sides.reread(ordered[start : start + ROWS_PER_CHUNK])
            written = await self._lane.project(rows, rewrite=differing.keys())
            outcomes = added(outcomes, {outcome.value: count for outcome, count in written.items()})
        stored = self._sides.stored
        hashes = [(document, number) for document in differing for number in surplus.get(document, ())]
        pruned = await stored.prune(hashes)
        await stored.keyspace.remove(foreign)
        await self._durability.reached()
        return Tally(outcomes=outcomes, pruned=pruned + len(foreign))

    async def _refuse_emptying(self, orphans: int, removed_before: int) -> None:
        removed = removed_before + orphans
        if self._may_empty or 2 * removed <= DOCUMENTS_GUARDED_MIN:
            return
        if self._documents is None:
            self._documents = await self._sides.stored.count() + removed_before
        refuse_emptying(self._sides.projection.pipeline.name, removed, self._documents)


class Examiner:
    """Settles suspects, and mends them where that is wanted.

    Args:
        share: of the embedder.
        whole: read the documents whole (and embed their texts, if the sides have an embedder); else their digests.
        mender: None: tell what differs, and mend nothing.
        lag_s: see `SecondLooks`.
        on_seen: gets ("rows" or "documents", how many more were seen).
        on_settled: gets what stayed different, and the foreign keys.
    """

    def __init__(
        self,
        sides: Sides,
        share: EmbedderShare,
        interruption: Interruption,
        *,
        whole: bool,
        mender: Mender | None = None,
        lag_s: float = 0.0,
        on_seen: Callable[[str, int], None] = lambda what, count: None,
        on_settled: Callable[[Differences, Collection[str]], None] = lambda differing, foreign: None,
    ) -> None:
        self.sides = sides
        self.comparison = RowComparison(sides)
        self.interruption = interruption
        self.mender = mender
        self.on_seen = on_seen
        self._on_settled = on_settled
        self._whole = whole
        self._share = share
        self._looks = SecondLooks(self.comparison, lag_s)

    async def suspects(self, wanted: Mapping[str, Wanted]) -> set[str]:
        """Return the documents that differ at a first look."""
        if not self._whole:
            return await self.comparison.suspects(wanted)
        async with self._share.place(self.sides.projection.client):
            looks = await self.comparison.looks(wanted)
        return {identifier for identifier, look in looks.items() if look.differences}

    async def settled(
        self,
        suspects: Collection[str],
        kinds: frozenset[Difference],
        surplus: Mapping[str, set[int]] | None = None,
        foreign: Sequence[str] = (),
        removed_before: int = 0,
    ) -> Tally | None:
        """Count what stayed different of these, mended where that is wanted; None: asked to end before it was known.

        Args:
            surplus, foreign, removed_before: see `Mender.mend`.
        """
        surplus = surplus or {}
        looked = await self._looks.settle(suspects, surplus, stop=lambda: self.interruption.asked)
        if looked is None:
            return None
        differing = {identifier: shown & kinds for identifier, shown in looked.items() if shown & kinds}
        self._on_settled(differing, foreign)
        shown = differing | dict.fromkeys(foreign, frozenset({Difference.ORPHANED}))
        tally = Tally(found=counted(shown, kinds), examples=examples(shown, kinds))
        if self.mender is None or not shown:
            return tally.model_copy(update={"left": tally.found})
        mended = await self.mender.mend(differing, surplus, foreign, removed_before)
        left = await self._looks.settle(differing, surplus)
        assert left is not None, "nothing stops it"
        return tally.plus(mended).model_copy(update={"left": counted(left, kinds)})


def _is_due(held: int, since_s: float) -> bool:
    """Return whether to settle: what is held is lost with its worker, and settling waits for changes on their way."""
    return not held or held >= _SUSPECTS_MAX or time.monotonic() - since_s >= _UNSETTLED_S_MAX


class RangeChecked(BaseModel, frozen=True):
    """How far a range was checked: also what heartbeats carry. `after`: up to this key it is done with."""

    after: Key | None
    ended: bool = False
    tally: Tally = Tally()


class RangeCheck:
    """Compares the rows of one key range; `checked` is where another attempt goes on."""

    def __init__(self, begun: RangeChecked, until: Key | None = None, rate: float | None = None) -> None:
        self.checked = begun
        self._until = until
        self._rate = Rate(rate)

    async def run(self, examiner: Examiner) -> RangeChecked:
        """Check until the range's end, or until asked to end; raise FailureClass where a part failed."""
        suspects: set[str] = set()
        seen, since_s = Tally(), time.monotonic()
        async for batch in examiner.sides.batches(self.checked.after, self._until):
            if examiner.interruption.asked:
                break
            wanted = examiner.comparison.rendered(batch.rows)
            suspects |= await examiner.suspects(wanted)
            refused = sum(isinstance(document, RejectRow) for document in wanted.values())
            seen = seen.plus(Tally(rows=len(batch.rows), refused=refused))
            examiner.on_seen("rows", len(batch.rows))
            ended = batch.last is None
            if ended or _is_due(len(suspects), since_s):
                settled = await examiner.settled(suspects, OF_ROWS)
                if settled is None:
                    break
                tally = self.checked.tally.plus(seen).plus(settled)
                self.checked = RangeChecked(after=batch.last or self._until, ended=ended, tally=tally)
                suspects, seen, since_s = set(), Tally(), time.monotonic()
            await self._rate.spent(len(batch.rows), examiner.interruption)
        return self.checked


class KeysChecked(BaseModel, frozen=True):
    """How far the keys were checked: also what heartbeats carry. `position` None: at the beginning."""

    position: WalkPosition | None
    ended: bool = False
    tally: Tally = Tally()


@dataclass
class _KeysSeen:
    """What Redis has and the table does not ask for; it may be a change on its way.

    Attributes:
        documents: how many of the keys were a document's bookkeeping.
        suspects: documents without a row, or with surplus chunks.
        surplus: chunk numbers beyond those of their document.
        foreign: keys that livevec did not write.
    """

    documents: int = 0
    suspects: set[str] = field(default_factory=set)
    surplus: dict[str, set[int]] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)

    async def add(self, sides: Sides, keys: Iterable[str]) -> int:
        """Ask the table for the documents of some keys; return how many documents they were."""
        stored, sorted_keys = sides.stored, sides.stored.sorted_out(keys)
        kept = await stored.bookkeeping(sorted_keys.documents)
        present = [
            identifier
            for identifier, held in zip(sorted_keys.documents, kept, strict=True)
            if held.digests is not None
        ]
        rows = await sides.reread(present, keys_only=True) if present else []
        self.suspects |= {identifier for identifier, _, row in rows if row is None}
        owners = await stored.bookkeeping([identifier for identifier, _ in sorted_keys.chunks])
        for (identifier, number), held in zip(sorted_keys.chunks, owners, strict=True):
            if number >= held.chunks:
                self.suspects.add(identifier)
                self.surplus.setdefault(identifier, set()).add(number)
        self.foreign.update(sorted_keys.foreign)
        self.documents += len(present)
        return len(present)


class KeysCheck:
    """Asks the table for the keys that Redis has; `checked` is where another attempt goes on."""

    def __init__(self, begun: KeysChecked, rate: float | None = None) -> None:
        self.checked = begun
        self._rate = Rate(rate)

    async def run(self, examiner: Examiner) -> KeysChecked:
        """Check until Redis has no more keys, or until asked to end; raise FailureClass where a part failed."""
        keyspace = examiner.sides.stored.keyspace
        position = self.checked.position or await keyspace.beginning()
        seen, since_s = _KeysSeen(), time.monotonic()
        while not examiner.interruption.asked and not position.done:
            step = await keyspace.step(position, KEYS_PER_STEP)
            position = step.position
            if step.restarted:
                # All keys will be seen once more; what was mended will not be found again.
                kept = self.checked.tally.model_copy(update={"documents": 0}) if examiner.mender else Tally()
                self.checked = KeysChecked(position=None, tally=kept)
                seen.documents = 0
            examiner.on_seen("documents", await seen.add(examiner.sides, step.keys))
            if position.done or _is_due(len(seen.suspects) + len(seen.foreign), since_s):
                before = self.checked.tally
                settled = await examiner.settled(
                    seen.suspects,
                    OF_KEYS,
                    seen.surplus,
                    sorted(seen.foreign),
                    removed_before=before.found.get(Difference.ORPHANED, 0) if examiner.mender else 0,
                )
                if settled is None:
                    break
                tally = before.plus(Tally(documents=seen.documents)).plus(settled)
                self.checked = KeysChecked(position=position, ended=position.done, tally=tally)
                seen, since_s = _KeysSeen(), time.monotonic()
            await self._rate.spent(len(step.keys), examiner.interruption)
        return self.checked

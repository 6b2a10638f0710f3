"""A key range, and the keys that Redis has, on their way through a check: look, look again, mend, move on.

What was looked at and not yet settled is held, at most so much; a position moves on only past what is settled, so
that another attempt misses nothing.
"""

import time
from collections.abc import Mapping

from daemon.errors import RejectRow
from daemon.index.durability import Durability
from daemon.projection.build import Projection
from daemon.projection.slow_lane import EmbedderShare, SlowLane
from daemon.verify.comparison import Comparison, Wanted
from daemon.verify.differences import Difference
from daemon.verify.looks import Pace, SecondLooks
from daemon.verify.mend import Mender
from daemon.verify.session import subject_of
from daemon.verify.subject import batches
from daemon.verify.walk import KEYS_PER_STEP, Walk
from workflows.interruption import Interruption
from workflows.reconcile.contract import (
    KeysChecked,
    KeysOrder,
    RangeChecked,
    RangeOrder,
    Subject,
    Tally,
    counted,
    examples,
)

OF_KEYS = frozenset({Difference.ORPHANED, Difference.SURPLUS_CHUNKS})
"""Told by the walk through Redis' keys; all others by the rows, so that none is counted twice."""
OF_ROWS = frozenset(Difference) - OF_KEYS
_SUSPECTS_MAX = 2_000
_UNSETTLED_S_MAX = 10.0


class Examiner:
    """Settles suspects of one activity, and mends them where that is wanted."""

    def __init__(
        self,
        projection: Projection,
        order: Subject,
        lane: SlowLane,
        share: EmbedderShare,
        durability: Durability,
        interruption: Interruption,
    ) -> None:
        self.subject = subject_of(projection, vectors=order.vectors)
        self.comparison = Comparison(self.subject)
        self.interruption = interruption
        self.vectors = order.vectors
        self._repair = order.repair
        self._share = share
        self._client = projection.client
        self._durability = durability
        self._mender = Mender(self.subject, lane)
        self._looks = SecondLooks(self.comparison, Pace(order.lag_s))

    async def suspects(self, wanted: Mapping[str, Wanted]) -> set[str]:
        """Documents that differ at a first look."""
        if not self.vectors:
            return await self.comparison.suspects(wanted)
        async with self._share.place(self._client):
            looks = await self.comparison.looks(wanted)
        return {one for one, look in looks.items() if look.differences}

    async def settled(
        self,
        suspects: set[str],
        kinds: frozenset[Difference],
        surplus: Mapping[str, set[int]] | None = None,
        foreign: tuple[str, ...] = (),
    ) -> Tally | None:
        """What stayed different of these, mended where that is wanted; None: asked to end before it was known."""
        surplus = surplus or {}
        told = await self._looks.settle(suspects, surplus, stop=lambda: self.interruption.asked)
        if told is None:
            return None
        told = {one: shown & kinds for one, shown in told.items() if shown & kinds}
        shown = told | dict.fromkeys(foreign, frozenset({Difference.ORPHANED}))
        tally = Tally(found=counted(shown, kinds), examples=examples(shown, kinds))
        if not self._repair or not shown:
            return tally.model_copy(update={"left": tally.found})
        outcomes = await self._mender.documents(told.keys())
        pruned = await self._mender.hashes({one: surplus[one] for one in told if one in surplus}, foreign)
        await self._durability.reached()
        left = await self._looks.settle(told, surplus)
        assert left is not None
        return tally.model_copy(
            update={
                "left": counted(left, kinds),
                "outcomes": {outcome.value: count for outcome, count in outcomes.items()},
                "pruned": pruned,
            }
        )


class _Rate:
    """Keeps to so many a second."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._next_at_s = time.monotonic()

    async def spent(self, count: int, interruption: Interruption) -> None:
        if self._per_s is not None:
            self._next_at_s = max(self._next_at_s, time.monotonic() - 1.0) + count / self._per_s
            await interruption.wait(max(0.0, self._next_at_s - time.monotonic()))


def _to_settle(held: int, since_s: float) -> bool:
    """What is held is lost with its worker, and each settling waits for changes that are on their way."""
    return not held or held >= _SUSPECTS_MAX or time.monotonic() - since_s >= _UNSETTLED_S_MAX


class RangeCheck:
    """Compares the rows of one key range; `checked` is where another attempt goes on."""

    def __init__(self, order: RangeOrder, begun: RangeChecked | None) -> None:
        self.checked = begun or RangeChecked(after=order.after)
        self._until = order.until
        self._rate = _Rate(order.rate)

    async def run(self, examiner: Examiner) -> RangeChecked:
        """Until the range's end, or until asked to end.

        Raises:
            FailureClass: a part failed.
        """
        suspects: set[str] = set()
        seen, since_s = Tally(), time.monotonic()
        async for batch in batches(examiner.subject, self.checked.after, self._until):
            if examiner.interruption.asked:
                break
            wanted = examiner.comparison.rendered(batch.rows)
            suspects |= await examiner.suspects(wanted)
            refused = sum(isinstance(one, RejectRow) for one in wanted.values())
            seen = seen.plus(Tally(rows=len(batch.rows), refused=refused))
            ended = batch.last is None
            if ended or _to_settle(len(suspects), since_s):
                settled = await examiner.settled(suspects, OF_ROWS)
                if settled is None:
                    break
                tally = self.checked.tally.plus(seen).plus(settled)
                self.checked = RangeChecked(after=batch.last or self._until, ended=ended, tally=tally)
                suspects, seen, since_s = set(), Tally(), time.monotonic()
            await self._rate.spent(len(batch.rows), examiner.interruption)
        return self.checked


class KeysCheck:
    """Asks the table for the keys that Redis has; `checked` is where another attempt goes on."""

    def __init__(self, order: KeysOrder, begun: KeysChecked | None) -> None:
        self.checked = begun or KeysChecked(position=order.position)
        self._repair = order.subject.repair
        self._rate = _Rate(order.rate)

    async def run(self, examiner: Examiner) -> KeysChecked:
        """Until Redis has no more keys, or until asked to end.

        Raises:
            FailureClass: a part failed.
        """
        keyspace, walk = examiner.subject.stored.keyspace, Walk(examiner.subject)
        position = self.checked.position or await keyspace.beginning()
        suspects: set[str] = set()
        surplus: dict[str, set[int]] = {}
        foreign: set[str] = set()
        documents, since_s = 0, time.monotonic()
        while not examiner.interruption.asked and not position.done:
            step = await keyspace.step(position, KEYS_PER_STEP)
            position = step.position
            if step.restarted:
                self._begin_again()
                documents = 0
            found = await walk.look(step.keys)
            documents += found.documents
            suspects |= found.suspects
            foreign |= set(found.foreign)
            for one, numbers in found.surplus.items():
                surplus.setdefault(one, set()).update(numbers)
            if position.done or _to_settle(len(suspects) + len(foreign), since_s):
                settled = await examiner.settled(suspects, OF_KEYS, surplus, tuple(sorted(foreign)))
                if settled is None:
                    break
                tally = self.checked.tally.plus(Tally(documents=documents)).plus(settled)
                self.checked = KeysChecked(position=position, ended=position.done, tally=tally)
                suspects, surplus, foreign = set(), {}, set()
                documents, since_s = 0, time.monotonic()
            await self._rate.spent(len(step.keys), examiner.interruption)
        return self.checked

    def _begin_again(self) -> None:
        """All keys will be seen once more; what was mended will not be found again."""
        kept = self.checked.tally.model_copy(update={"documents": 0}) if self._repair else Tally()
        self.checked = KeysChecked(position=None, tally=kept)

"""Looks again at what differs: a change on its way looks like a difference, so only what stays counts as one."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from daemon.verify.comparison import Look, RowComparison
from daemon.verify.differences import Difference, Differences
from daemon.verify.sides import ROWS_PER_CHUNK

LOOK_PAUSE_S = 0.2
LOOKS = 4
"""A difference counts when so many looks in a row found the same of a document that was not written meanwhile."""
LOOKS_MAX = 25
"""After so many it counts even where the document goes on being written."""
_LAGGING = frozenset({Difference.MISSING, Difference.STALE, Difference.ORPHANED})
"""A change that is committed and not yet applied looks like these. The others are of Redis alone."""
_LAG_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """The same look, `count` times in a row since `since_s`."""

    look: Look
    count: int
    since_s: float


class SecondLooks:
    """Looks again at suspects until each counts as different, or is cleared.

    Args:
        lag_s: how long a change may be on its way, from its commit until it is applied. While a document is missing,
            stale or orphaned, it may just wait for its change; with 0, the looks alone decide.
    """

    def __init__(self, comparison: RowComparison, lag_s: float = 0.0) -> None:
        self._comparison = comparison
        self._lag_s = lag_s
        self._looks_max = LOOKS_MAX + int(lag_s / _LAG_PAUSE_S)

    async def settle(
        self,
        suspects: Iterable[str],
        surplus: Mapping[str, Iterable[int]],
        stop: Callable[[], bool] = lambda: False,
    ) -> Differences | None:
        """Return what stayed different, by document; None: `stop`, asked before each look, said so earlier."""
        before: dict[str, _Seen] = {}
        differing: dict[str, frozenset[Difference]] = {}
        left = sorted(suspects)
        number = 0
        while left:
            if number:
                await asyncio.sleep(LOOK_PAUSE_S if number <= LOOKS or not self._lag_s else _LAG_PAUSE_S)
            if stop():
                return None
            number += 1
            waiting = []
            for start in range(0, len(left), ROWS_PER_CHUNK):
                part = left[start : start + ROWS_PER_CHUNK]
                looks = await self._comparison.look_again(part, surplus)
                now_s = time.monotonic()
                for identifier, look in looks.items():
                    if not look.differences:
                        continue
                    seen = before.get(identifier)
                    if seen is None or seen.look != look:
                        seen = _Seen(look, 0, now_s)
                    seen = before[identifier] = replace(seen, count=seen.count + 1)
                    verdict = self._verdict(seen, number, now_s)
                    if verdict is None:
                        waiting.append(identifier)
                    elif verdict:
                        differing[identifier] = verdict
            left = waiting
        return differing

    def _verdict(self, seen: _Seen, number: int, now_s: float) -> frozenset[Difference] | None:
        """Return the differences that count, none if it is cleared; None: look again."""
        differences = seen.look.differences
        stayed = seen.count >= LOOKS
        if stayed and (not differences & _LAGGING or now_s - seen.since_s >= self._lag_s):
            return differences
        if number < self._looks_max:
            return None
        # Written at every look: what its own changes bring about is no difference, where a lag is allowed for.
        return differences - _LAGGING if self._lag_s and not stayed else differences

"""When a difference is told: what stays so of a document at rest, not what its own changes bring about."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from daemon.verify.comparison import Look
from daemon.verify.differences import Difference as D
from daemon.verify.looks import LOOKS, LOOKS_MAX, SecondLooks

AT_ONCE = 0.0


class ScriptedComparison:
    """Shows one document, look after look; the last is shown for ever."""

    def __init__(self, script: Iterable[Look]) -> None:
        self._script = iter(script)
        self.count = 0

    async def look_again(self, ids: Sequence[str], surplus: Mapping[str, Iterable[int]]) -> dict[str, Look]:
        self.count += 1
        return {one: next(self._script) for one in ids}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses pass at once, and count."""
    now_s = [0.0]

    async def sleep(seconds: float) -> None:
        now_s[0] += seconds

    monkeypatch.setattr("daemon.verify.looks.asyncio.sleep", sleep)
    monkeypatch.setattr("daemon.verify.looks.time.monotonic", lambda: now_s[0])


def at_rest(*kinds: D) -> Iterator[Look]:
    return itertools.repeat(Look(frozenset(kinds), "v"))


def written(*kinds: D) -> Iterator[Look]:
    """Another version at every look."""
    return (Look(frozenset(kinds), str(number)) for number in itertools.count())


async def told(script: Iterable[Look], lag_s: float = AT_ONCE) -> tuple[Any, int]:
    comparison = ScriptedComparison(script)
    found = await SecondLooks(comparison, lag_s).settle({"a"}, {})  # type: ignore[arg-type]
    return found, comparison.count


async def test_a_difference_is_told_after_so_many_equal_looks() -> None:
    assert await told(at_rest(D.STALE)) == ({"a": {D.STALE}}, LOOKS)


async def test_a_difference_that_goes_away_is_not_told() -> None:
    script = itertools.chain(itertools.islice(at_rest(D.STALE), LOOKS - 1), at_rest())
    assert await told(script) == ({}, LOOKS)


async def test_a_document_that_is_written_meanwhile_is_looked_at_anew() -> None:
    script = itertools.chain(itertools.islice(written(D.STALE), LOOKS), at_rest(D.STALE))
    assert await told(script) == ({"a": {D.STALE}}, 2 * LOOKS)


@pytest.mark.parametrize("kind", [D.MISSING, D.STALE, D.ORPHANED])
async def test_what_a_lag_may_bring_about_is_told_only_after_it(kind: D) -> None:
    for absent_s, expected in ((25.0, {}), (40.0, {"a": {kind}})):
        late = itertools.chain(itertools.islice(at_rest(kind), int(absent_s)), at_rest())
        found, _ = await told(late, 30.0)
        assert found == expected


@pytest.mark.parametrize("kind", [D.LOST_CHUNKS, D.NOT_INDEXED, D.SURPLUS_CHUNKS, D.WRONG_VECTOR])
async def test_what_no_lag_brings_about_does_not_wait_for_it(kind: D) -> None:
    assert await told(at_rest(kind), 30.0) == ({"a": {kind}}, LOOKS)


async def test_a_document_that_is_always_being_written_is_not_told_for_its_own_changes() -> None:
    found, count = await told(written(D.STALE, D.NOT_INDEXED), 30.0)
    assert found == {"a": {D.NOT_INDEXED}}
    assert count == LOOKS_MAX + 30


async def test_it_can_be_stopped_before_it_is_sure() -> None:
    asked = iter([False, True])
    comparison = ScriptedComparison(at_rest(D.STALE))
    found = await SecondLooks(comparison).settle({"a"}, {}, stop=lambda: next(asked))  # type: ignore[arg-type]
    assert (found, comparison.count) == (None, 1)

"""When a dead letter is tried again, and when no more."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.source.record import Coordinates
from workflows.retry.contract import (
    Complaint,
    Feed,
    GivenUp,
    Letter,
    RetryPolicy,
    RetryState,
    Selection,
    Tried,
    TryOutcome,
)
from workflows.retry.queue import LATER_S, RetryQueue

POLICY = RetryPolicy(
    pause_s_min=10.0,
    pause_s_max=100.0,
    attempts_max=4,
    give_up_after_s=10_000.0,
    documents_max=5,
    wait_for_change=("oversized_text",),
)


def letter(name: str, offset: int, reason: str = "embedder_refused", at_s: float = 0.0) -> Letter:
    return Letter(name, name, reason, "", at_s or float(offset), Coordinates("dead", 0, offset), None)


def queue(*letters: Letter, policy: RetryPolicy = POLICY, now_s: float = 0.0) -> RetryQueue:
    made = RetryQueue(RetryState(), policy, lambda: 1.0)
    feed(made, letters, now_s)
    return made


def feed(waiting: RetryQueue, letters: Sequence[Letter], now_s: float = 0.0) -> None:
    waiting.feed(Feed(tuple(letters), (), waiting.policy), now_s)


def settle(waiting: RetryQueue, name: str, outcome: TryOutcome, now_s: float, reason: str = "again") -> None:
    [held] = waiting.selected(Selection(key=name))
    complaint = Complaint(reason, "says why") if outcome is TryOutcome.REFUSED else None
    waiting.settle([Tried(held.letter, outcome, complaint)], now_s)


def test_pauses_double_up_to_the_longest_and_end_with_giving_up() -> None:
    waiting = queue(letter("a", 0))
    now_s, pauses = 0.0, []
    for _ in range(POLICY.attempts_max):
        next_at_s = waiting.next_at_s()
        assert next_at_s is not None
        assert waiting.due(next_at_s - 0.1, 10) == ()
        pauses.append(next_at_s - now_s)
        now_s = next_at_s
        [attempt] = waiting.due(now_s, 10)
        assert not attempt.look
        settle(waiting, "a", TryOutcome.REFUSED, now_s)
    assert pauses == [10.0, 20.0, 40.0, 80.0]
    [held] = waiting
    assert held.given_up is GivenUp.ATTEMPTS
    assert held.letter.reason == "again"
    assert waiting.message("again") == "says why"


@given(st.integers(0, 40), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_never_below_half_nor_above_its_length(tries: int, chance: float) -> None:
    waiting = RetryQueue(RetryState(), POLICY, lambda: chance)
    feed(waiting, [letter("a", 0, at_s=1.0)])
    now_s = 0.0
    for _ in range(tries):
        settle(waiting, "a", TryOutcome.WAITING, now_s)
    [held] = waiting
    length_s = min(100.0, 10.0 * 2**tries)
    assert length_s / 2 <= held.next_at_s - now_s <= length_s


def test_a_given_up_document_is_only_looked_at_and_goes_when_something_newer_is_stored() -> None:
    waiting = queue(letter("a", 0))
    settle(waiting, "a", TryOutcome.GONE, 0.0)
    [attempt] = waiting.due(1000.0, 10)
    assert attempt.look
    settle(waiting, "a", TryOutcome.WAITING, 1000.0)
    assert [held.given_up for held in waiting] == [GivenUp.RECORD_GONE]
    settle(waiting, "a", TryOutcome.SUPERSEDED, 2000.0)
    assert len(waiting) == 0


def test_a_row_that_must_change_is_only_looked_at_until_a_person_asks() -> None:
    waiting = queue(letter("a", 0, "oversized_text"), letter("b", 1))
    assert {a.letter.name: a.look for a in waiting.due(1000.0, 10)} == {"a": True, "b": False}
    round_ = waiting.request(Selection(reason="oversized_text"), 5.0)
    assert [(a.letter.name, a.look) for a in waiting.due(5.0, 10)] == [("a", False)]
    settle(waiting, "a", TryOutcome.REFUSED, 5.0, "oversized_text")
    assert round_.open == 0
    assert round_.outcomes == {TryOutcome.REFUSED: 1}
    assert [a.look for a in waiting.due(1000.0, 10) if a.letter.name == "a"] == [True]


def test_a_given_up_document_that_a_person_asks_for_gets_all_its_attempts_again() -> None:
    waiting = queue(letter("a", 0))
    for _ in range(POLICY.attempts_max):
        settle(waiting, "a", TryOutcome.REFUSED, 0.0)
    waiting.request(Selection(key="a"), 5.0)
    assert [(held.attempts, held.given_up) for held in waiting] == [(0, None)]
    settle(waiting, "a", TryOutcome.REFUSED, 5.0)
    assert [attempt.look for attempt in waiting.due(1000.0, 10)] == [False]


def test_looks_do_not_count_as_attempts() -> None:
    waiting = queue(letter("a", 0, "oversized_text"))
    for _ in range(3 * POLICY.attempts_max):
        settle(waiting, "a", TryOutcome.WAITING, 0.0)
    assert [(held.attempts, held.given_up) for held in waiting] == [(0, None)]


def test_a_row_that_the_source_does_not_show_yet_is_tried_soon_and_keeps_its_attempts() -> None:
    waiting = queue(letter("a", 0))
    round_ = waiting.request(Selection(), 0.0)
    settle(waiting, "a", TryOutcome.LATER, 7.0)
    [held] = waiting
    assert (held.next_at_s, held.attempts, round_.open) == (7.0 + LATER_S, 0, 1)


def test_age_ends_the_tries() -> None:
    waiting = queue(letter("a", 0))
    settle(waiting, "a", TryOutcome.REFUSED, POLICY.give_up_after_s + 1)
    assert [held.given_up for held in waiting] == [GivenUp.AGE]


def test_the_same_letter_fed_twice_counts_once() -> None:
    waiting = queue(letter("a", 0), letter("b", 1))
    settle(waiting, "a", TryOutcome.REFUSED, 50.0)
    settle(waiting, "b", TryOutcome.APPLIED, 50.0)
    feed(waiting, [letter("a", 0), letter("b", 1)], 60.0)
    assert waiting.taken == 2
    assert [(held.letter.name, held.attempts) for held in waiting] == [("a", 1)]


def test_a_dead_letter_topic_that_was_made_anew_is_taken_from_its_beginning() -> None:
    waiting = queue(letter("a", 7, at_s=100.0))
    feed(waiting, [letter("b", 0, at_s=200.0)])
    assert {held.letter.name for held in waiting} == {"a", "b"}


def test_a_newer_letter_of_the_same_document_begins_anew_and_an_older_one_is_ignored() -> None:
    waiting = queue(letter("a", 5, at_s=50.0))
    settle(waiting, "a", TryOutcome.REFUSED, 60.0)
    waiting.feed(
        Feed((Letter("a", "a", "older", "", 40.0, Coordinates("dead", 1, 0), None),), (), POLICY), 60.0
    )
    assert [(held.letter.reason, held.attempts) for held in waiting] == [("again", 1)]
    feed(waiting, [letter("a", 6, "newer", at_s=70.0)], 70.0)
    assert [(held.letter.reason, held.attempts) for held in waiting] == [("newer", 0)]


def test_the_result_of_an_older_letter_does_not_settle_a_newer_one() -> None:
    waiting = queue(letter("a", 0))
    [attempt] = waiting.due(1000.0, 10)
    feed(waiting, [letter("a", 1)], 1000.0)
    waiting.settle([Tried(attempt.letter, TryOutcome.APPLIED)], 1000.0)
    assert len(waiting) == 1


def test_room_is_what_the_policy_leaves_unless_long_keys_have_filled_it() -> None:
    assert queue(letter("a", 0), letter("b", 1)).room == POLICY.documents_max - 2
    assert queue(letter("k" * 600_000, 0)).room == 0


def test_a_call_holds_no_more_than_temporal_takes_and_always_one() -> None:
    waiting = queue(*(letter(f"{n}" * 60_000, n) for n in range(4)))
    assert [attempt.letter.name[0] for attempt in waiting.due(1000.0, 10)] == ["0"]
    waiting = queue(*(letter(f"{n}", n) for n in range(4)))
    assert [attempt.letter.name for attempt in waiting.due(1000.0, 3)] == ["0", "1", "2"]


def test_dropped_documents_are_gone_and_counted() -> None:
    waiting = queue(letter("a", 0, "x"), letter("b", 1, "y"), letter("c", 2, "y"))
    round_ = waiting.request(Selection(), 0.0)
    assert waiting.drop(Selection(reason="y")) == 2
    assert [held.letter.name for held in waiting] == ["a"]
    assert waiting.totals[TryOutcome.DROPPED] == 2
    assert round_.open == 1


def test_a_second_request_ends_the_first_for_the_same_document() -> None:
    waiting = queue(letter("a", 0))
    first = waiting.request(Selection(), 0.0)
    second = waiting.request(Selection(key="a"), 1.0)
    assert (first.open, second.open) == (0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_between_runs(seed: int) -> None:
    chance = random.Random(seed)
    waiting = queue(*(letter(f"k{n}", n, chance.choice(["x", "oversized_text"])) for n in range(5)))
    waiting.request(Selection(key="k1"), 3.0)
    settle(waiting, "k1", TryOutcome.REFUSED, 4.0)
    settle(waiting, "k2", TryOutcome.APPLIED, 4.0)
    again = RetryQueue(waiting.state(), POLICY, lambda: 1.0)
    assert again.state() == waiting.state()
    assert again.due(1e9, 10) == waiting.due(1e9, 10)
    assert again.round(1) == waiting.round(1)

"""The dead letters of one pipeline, by document: it decides which is tried next and when, and which is given up.

No clock and no randomness of its own: the workflow gives both, so that its history can be replayed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from workflows.retry.contract import (
    Attempt,
    Fed,
    Feed,
    GivenUp,
    Held,
    Letter,
    RetryPolicy,
    RetryState,
    Round,
    Selection,
    Tried,
    TryOutcome,
    within,
)

LATER_S = 1.0
"""Until a row is read again whose change the source did not show yet."""
_DONE = frozenset({TryOutcome.APPLIED, TryOutcome.SUPERSEDED})
_ROUNDS_KEPT = 20
_DOUBLINGS_MAX = 30
_BYTES_MAX = 1_000_000
"""Of the state; Temporal refuses arguments of more than 2 MB."""


class RetryQueue:
    """Decides what is tried; the workflow waits and acts.

    Args:
        state: to begin with.
        policy: may be replaced at any time.
        random: gives numbers in [0, 1).
    """

    def __init__(self, state: RetryState, policy: RetryPolicy, random: Callable[[], float]) -> None:
        self.policy = policy
        self.totals: Counter[TryOutcome] = Counter(state.totals)
        self.taken = state.taken
        self._held = {held.letter.name: held for held in state.held}
        self._fed = {fed.partition: fed for fed in state.fed}
        self._complaints = {complaint.reason: complaint for complaint in state.complaints}
        self._rounds = list(state.rounds)
        self._random = random

    def state(self) -> RetryState:
        return RetryState(
            held=list(self._held.values()),
            fed=list(self._fed.values()),
            complaints=list(self._complaints.values()),
            totals=dict(self.totals),
            taken=self.taken,
            rounds=self._rounds,
        )

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    @property
    def room(self) -> int:
        """How many more documents can be held; the rest waits in Kafka."""
        if sum(held.letter.size_bytes for held in self) > _BYTES_MAX:
            return 0
        return max(0, self.policy.documents_max - len(self._held))

    def counted(self) -> tuple[Counter[str], Counter[str]]:
        """Count documents by reason: those that wait, and those that are given up."""
        waiting: Counter[str] = Counter()
        given_up: Counter[str] = Counter()
        for held in self:
            (given_up if held.given_up else waiting)[held.letter.reason] += 1
        return waiting, given_up

    def message(self, reason: str) -> str:
        """Return what a row of that reason was refused with last."""
        complaint = self._complaints.get(reason)
        return complaint.message if complaint else ""

    # ---- dead letters come in

    def feed(self, feed: Feed, now_s: float) -> None:
        """Take dead letters; those that were taken before change nothing."""
        self.policy = feed.policy
        for letter in feed.letters:
            if self._is_new(letter):
                self.taken += 1
                self._take(letter, now_s)
        self._complaints |= {complaint.reason: complaint for complaint in feed.complaints}

    def _is_new(self, letter: Letter) -> bool:
        place = letter.place
        fed = self._fed.get(place.partition)
        if fed is not None and place.offset < fed.offset and letter.at_s <= fed.at_s:
            return False
        at_s = letter.at_s if fed is None else max(fed.at_s, letter.at_s)
        self._fed[place.partition] = Fed(place.partition, place.offset + 1, at_s)
        return True

    def _take(self, letter: Letter, now_s: float) -> None:
        """Take a letter; a newer one begins anew: the row is another one."""
        before = self._held.get(letter.name)
        if before is not None and before.letter.at_s > letter.at_s:
            return
        held = Held(letter, next_at_s=now_s + self._pause_s(0))
        if before is not None and before.round:
            held.round, held.next_at_s = before.round, now_s
        self._held[letter.name] = held

    # ---- tries

    def next_at_s(self) -> float | None:
        """Return when the next try is due; None: nothing is held."""
        return min((held.next_at_s for held in self), default=None)

    def due(self, now_s: float, count_max: int) -> tuple[Attempt, ...]:
        """Return what is to be tried now, longest overdue first."""
        due = sorted((held for held in self if held.next_at_s <= now_s), key=lambda held: held.next_at_s)
        called = within((held.letter for held in due), count_max)
        waits_for_change = self.policy.wait_for_change
        return tuple(
            Attempt(
                held.letter,
                look=not held.round and bool(held.given_up or held.letter.reason in waits_for_change),
            )
            for held in due[: len(called)]
        )

    def settle(self, tried: Sequence[Tried], now_s: float) -> None:
        """Take the results of attempts; a document that got a newer letter meanwhile stays."""
        for result in tried:
            held = self._held.get(result.letter.name)
            if held is None or held.letter.place != result.letter.place:
                continue
            self._settle(held, result, now_s)
            if result.complaint is not None:
                self._complaints[result.complaint.reason] = result.complaint

    def _settle(self, held: Held, tried: Tried, now_s: float) -> None:
        outcome = tried.outcome
        if outcome is TryOutcome.LATER:
            held.next_at_s = now_s + LATER_S
            return
        if outcome is not TryOutcome.WAITING:
            self._count(held, outcome)
        if outcome in _DONE:
            del self._held[held.letter.name]
            return
        held.tries += 1
        if outcome is TryOutcome.REFUSED:
            held.attempts += 1
            assert tried.complaint is not None
            held.letter = replace(held.letter, reason=tried.complaint.reason)
        held.given_up = held.given_up or self._verdict(held, outcome, now_s)
        held.next_at_s = now_s + self._pause_s(held.tries)

    def _verdict(self, held: Held, outcome: TryOutcome, now_s: float) -> GivenUp | None:
        if outcome is TryOutcome.GONE:
            return GivenUp.RECORD_GONE
        if outcome is not TryOutcome.TOO_OLD and held.attempts >= self.policy.attempts_max:
            return GivenUp.ATTEMPTS
        is_old = now_s - held.letter.at_s > self.policy.give_up_after_s
        return GivenUp.AGE if is_old or outcome is TryOutcome.TOO_OLD else None

    def _pause_s(self, tries: int) -> float:
        """Return a pause that doubles with each try; half of it is random, so that rows that failed together part."""
        policy = self.policy
        pause_s = min(policy.pause_s_max, policy.pause_s_min * 2.0 ** min(tries, _DOUBLINGS_MAX))
        return pause_s * (0.5 + 0.5 * self._random())

    # ---- what a person asks for

    def selected(self, selection: Selection) -> list[Held]:
        return [held for held in self if selection.takes(held)]

    def request(self, selection: Selection, now_s: float) -> Round:
        """Have these tried at once, whatever the policy says of them."""
        number = self._rounds[-1].number + 1 if self._rounds else 1
        selected = self.selected(selection)
        for held in selected:
            self._leave_round(held, TryOutcome.LATER)
            held.round, held.next_at_s = number, now_s
            held.attempts, held.tries, held.given_up = 0, 0, None
        round_ = Round(number, len(selected))
        self._rounds = [*self._rounds, round_][-_ROUNDS_KEPT:]
        return round_

    def round(self, number: int) -> Round | None:
        """Return what a request led to so far; None: it was too long ago."""
        return next((round_ for round_ in self._rounds if round_.number == number), None)

    def drop(self, selection: Selection) -> int:
        """Forget these for good; return how many."""
        selected = self.selected(selection)
        for held in selected:
            self._count(held, TryOutcome.DROPPED)
            del self._held[held.letter.name]
        return len(selected)

    def _count(self, held: Held, outcome: TryOutcome) -> None:
        self.totals[outcome] += 1
        self._leave_round(held, outcome)

    def _leave_round(self, held: Held, outcome: TryOutcome) -> None:
        round_ = self.round(held.round) if held.round else None
        if round_ is not None:
            round_.outcomes[outcome] = round_.outcomes.get(outcome, 0) + 1
        held.round = 0

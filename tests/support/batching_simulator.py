"""A queue, a dispatcher and an embedder by a virtual clock: what a policy does under a load, without waiting."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from daemon.core.batching import Close, Finished, Policy, Running, Waiting

IN_FLIGHT_MAX = 4
CAPTURE_S = 0.004
"""Commit to the daemon."""


@dataclass(frozen=True)
class Machine:
    """A serial embedder: a request takes `factor(now) * (fixed_s + token_s * tokens)`; then `rest_s` to write."""

    fixed_s: float = 0.002
    token_s: float = 25e-6
    rest_s: float = 0.003
    factor: Callable[[float], float] = lambda _: 1.0

    def service_s(self, now_s: float, tokens: int) -> float:
        return self.factor(now_s) * (self.fixed_s + self.token_s * tokens)


@dataclass(frozen=True)
class Searchable:
    """One change: commit, and commit to searchable."""

    committed_at_s: float
    latency_s: float


@dataclass
class Outcome:
    """`overload`: the moments at which the policy began or ended to say that it is overloaded."""

    changes: list[Searchable] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    overload: list[tuple[float, bool]] = field(default_factory=list)

    def late(self, target_s: float) -> list[float]:
        """How much later than the target, for each that was."""
        return [one.latency_s - target_s for one in self.changes if one.latency_s > target_s]

    def recovered_after_s(self, ended_at_s: float, target_s: float) -> float:
        """From the end of a slow-down to the commit of the last late change."""
        late = [one.committed_at_s for one in self.changes if one.latency_s > target_s]
        return max(0.0, max(late, default=0.0) - ended_at_s)


@dataclass
class _Batch:
    items: Sequence[Waiting]
    closed_s: float
    tokens: int
    embed_s: float = 0.0


class Simulation:
    """Runs `policy` over arrivals of (time at the daemon, tokens), until all are searchable."""

    def __init__(self, policy: Policy, machine: Machine, target_s: float = 0.1) -> None:
        self._policy = policy
        self._machine = machine
        self._target_s = target_s
        self._queue: list[Waiting] = []
        self._running = 0
        self._embedding: list[_Batch] = []
        self._free_at_s = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._asked_at_s = math.inf
        self._number = 0
        self.outcome = Outcome()

    def run(self, arrivals: Sequence[tuple[float, int]]) -> Outcome:
        for at_s, tokens in arrivals:
            item = Waiting(at_s, at_s - CAPTURE_S + self._target_s, tokens)
            self._at(at_s, lambda now_s, item=item: self._arrive(now_s, item))  # type: ignore[misc]
        while self._events:
            now_s, _, event = heapq.heappop(self._events)
            event(now_s)
        assert len(self.outcome.changes) == len(arrivals), "the policy left changes in the queue"
        return self.outcome

    def _at(self, at_s: float, event: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (at_s, self._number, event))

    def _arrive(self, now_s: float, item: Waiting) -> None:
        self._queue.append(item)
        self._pump(now_s)

    def _pump(self, now_s: float) -> None:
        while self._queue and self._running < IN_FLIGHT_MAX:
            running = [Running(batch.tokens) for batch in self._embedding]
            decision = self._policy.decide(now_s, self._queue[:500], running)
            if not isinstance(decision, Close):
                if decision.until_s < math.inf:
                    self._at(max(decision.until_s, now_s + 0.0005), self._pump)
                break
            self._launch(now_s, decision.count)
        self._note(now_s)

    def _launch(self, now_s: float, count: int) -> None:
        items, self._queue = self._queue[:count], self._queue[count:]
        batch = _Batch(items, now_s, sum(item.tokens for item in items))
        self._running += 1
        self._embedding.append(batch)
        begins_s = max(now_s, self._free_at_s)
        batch.embed_s = self._machine.service_s(begins_s, batch.tokens)
        self._free_at_s = begins_s + batch.embed_s
        self.outcome.batches.append(count)
        self._at(self._free_at_s, lambda at_s: self._embedded(at_s, batch))

    def _embedded(self, now_s: float, batch: _Batch) -> None:
        self._embedding.remove(batch)
        self._at(now_s + self._machine.rest_s, lambda at_s: self._written(at_s, batch))
        self._pump(now_s)

    def _written(self, now_s: float, batch: _Batch) -> None:
        self._running -= 1
        commits_s = [item.deadline_s - self._target_s for item in batch.items]
        self.outcome.changes += [Searchable(at_s, now_s - at_s) for at_s in commits_s]
        self._policy.observe(
            now_s,
            Finished(
                len(commits_s), batch.tokens, batch.embed_s, now_s - batch.closed_s, now_s - min(commits_s)
            ),
        )
        if not self._queue and not self._running:
            self._policy.idle(now_s)
        self._pump(now_s)

    def _note(self, now_s: float) -> None:
        said = self.outcome.overload[-1][1] if self.outcome.overload else False
        if self._policy.overloaded != said:
            self.outcome.overload.append((now_s, self._policy.overloaded))

"""When a batch is closed, and how large it is.

Three policies share one interface. Each is asked whenever something arrived or finished, and answers `Close`
(take so many of the waiting, oldest first) or `Wait` (ask again at that time, or when something happens).
`deadline` is the default; `fixed` and `aimd` are there to be measured against it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Waiting:
    """One change in the queue, as a policy sees it."""

    arrived_s: float
    deadline_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Running:
    """One batch whose texts are at the embedder, or on their way there."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Close:
    count: int


@dataclass(frozen=True, slots=True)
class Wait:
    until_s: float = math.inf


Decision = Close | Wait


@dataclass(frozen=True, slots=True)
class Finished:
    """What a batch took, reported when it is acknowledged.

    Attributes:
        texts: texts that were embedded; 0 when none was.
        tokens: their estimated tokens.
        embed_s: time of inference, without waiting for the batch before it.
        total_s: from closing to acknowledgement.
        latency_s: commit to searchable of its oldest change.
    """

    texts: int
    tokens: int
    embed_s: float
    total_s: float
    latency_s: float


class Policy(Protocol):
    """The interface of batching. `waiting` is oldest first and not empty; how many batches may run is not asked."""

    overloaded: bool

    def decide(self, now_s: float, waiting: Sequence[Waiting], running: Sequence[Running]) -> Decision: ...

    def observe(self, now_s: float, finished: Finished) -> None: ...

    def idle(self, now_s: float) -> None:
        """Nothing waits and nothing runs."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold for every policy."""

    batch_max: int
    batch_tokens_max: int
    linger_s_max: float

    def fitting(self, waiting: Sequence[Waiting], count_max: int, tokens_max: float) -> int:
        """How many of the oldest fit into one batch; at least one."""
        count = tokens = 0
        for item in waiting[: min(count_max, self.batch_max)]:
            tokens += item.tokens
            if count and tokens > min(tokens_max, self.batch_tokens_max):
                break
            count += 1
        return count


class Fixed:
    """Closes at `size` changes, or when the oldest has lingered."""

    overloaded = False

    def __init__(self, limits: Limits, size: int) -> None:
        self._limits = limits
        self.size = size

    def decide(self, now_s: float, waiting: Sequence[Waiting], running: Sequence[Running]) -> Decision:
        linger_s = waiting[0].arrived_s + self._limits.linger_s_max
        if len(waiting) >= self.size or now_s >= linger_s:
            return Close(self._limits.fitting(waiting, self.size, math.inf))
        return Wait(linger_s)

    def observe(self, now_s: float, finished: Finished) -> None:
        """Nothing to learn."""

    def idle(self, now_s: float) -> None:
        """Nothing to forget."""


class Aimd(Fixed):
    """The published rule: over 100 ms the limit shrinks x 0.8, under 50 ms it grows x 1.1, within 1..500.

    Growth is at least one: int() of 1.1 x n is n for every n below 10, and the limit would stick there.
    """

    def observe(self, now_s: float, finished: Finished) -> None:
        if finished.latency_s > 0.100:
            self.size = max(1, int(self.size * 0.8))
        elif finished.latency_s < 0.050:
            self.size = min(500, max(self.size + 1, int(self.size * 1.1)))


@dataclass(frozen=True, slots=True)
class _Doubted:
    """A request at another pace than predicted."""

    tokens: int
    elapsed_s: float
    pace: float


class CostModel:
    """Time of inference, `fixed_s + token_s * tokens`, learned online.

    Least squares over exponentially forgotten observations; a residual of more than three times the usual one
    is clipped, so that one stalled request does not teach a wrong slope.
    A device that becomes slower or faster does so for the fixed part and for the tokens alike. So two or three
    requests in a row that take far more than predicted, or far less, scale the model as a whole: fitted instead, the
    small batches of before and the large ones of after would say that all of the cost is in the tokens.
    """

    _FORGET = 0.97
    _PRIOR = 1e-3
    _PACE_CHANGED = 1.4
    _PACE_CHANGED_PLAINLY = 3.0

    def __init__(self, fixed_s: float = 0.002, token_s: float = 25e-6) -> None:
        self.fixed_s = fixed_s
        self.token_s = token_s
        self._spread_s = 0.002
        self._doubted: list[_Doubted] = []
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        for tokens in (16.0, 512.0):
            self._add(tokens, fixed_s + token_s * tokens)

    def predict_s(self, tokens: float) -> float:
        return self.fixed_s + self.token_s * tokens

    def tokens_in(self, time_s: float) -> float:
        """The inverse of `predict_s`."""
        return (time_s - self.fixed_s) / self.token_s

    def observe(self, tokens: int, elapsed_s: float) -> None:
        # A coarse clock, or two requests that end as one, tell that it took no time at all.
        pace = max(elapsed_s, 1e-9) / max(self.predict_s(tokens), 1e-9)
        if self._doubted and (pace > 1) != (self._doubted[0].pace > 1):
            self._learn_doubted()
        if 1 / self._PACE_CHANGED < pace < self._PACE_CHANGED:
            self._learn_doubted()
            self._learn(tokens, elapsed_s)
            return
        self._doubted.append(_Doubted(tokens, elapsed_s, pace))
        # The nearest to what was: one stalled request among them must not set the pace.
        nearest = min((one.pace for one in self._doubted), key=lambda one: abs(math.log(one)))
        plain = max(nearest, 1 / nearest) > self._PACE_CHANGED_PLAINLY
        if len(self._doubted) >= (2 if plain else 3):
            self._scale(nearest)
            self._learn_doubted()

    def _scale(self, factor: float) -> None:
        self._y *= factor
        self._xy *= factor
        self.fixed_s *= factor
        self.token_s *= factor

    def _learn_doubted(self) -> None:
        doubted, self._doubted = self._doubted, []
        for one in doubted:
            self._learn(one.tokens, one.elapsed_s)

    def _learn(self, tokens: int, elapsed_s: float) -> None:
        residual = elapsed_s - self.predict_s(tokens)
        bound = 3 * self._spread_s + 0.5 * self.predict_s(tokens)
        clipped = min(max(residual, -bound), bound)
        self._spread_s = max(0.0005, 0.9 * self._spread_s + 0.1 * abs(clipped))
        self._add(float(tokens), elapsed_s - residual + clipped)
        self._fit()

    def _add(self, x: float, y: float) -> None:
        keep = self._FORGET
        self._weight = keep * self._weight + 1
        self._x = keep * self._x + x
        self._y = keep * self._y + y
        self._xx = keep * self._xx + x * x
        self._xy = keep * self._xy + x * y

    def _fit(self) -> None:
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        covariance = self._xy / self._weight - mean_x * mean_y
        # Batches of one size tell nothing about the slope: it is then kept, and only the level moves.
        trust = variance / (variance + self._PRIOR * mean_x * mean_x + 1.0)
        slope = trust * covariance / max(variance, 1e-9) + (1 - trust) * self.token_s
        self.token_s = min(max(slope, 1e-7), mean_y / max(mean_x, 1.0))
        self.fixed_s = max(0.0, mean_y - self.token_s * mean_x)


class Deadline:
    """The largest batch whose oldest member still meets its deadline; a lone change on an idle daemon at once.

    While a batch is being embedded, the next one collects until the embedder is done with it: until then waiting
    costs nothing and makes the batch larger. (Closing it a little earlier, by the predicted end, was measured:
    half of the batches then wait at the embedder, smaller than they could be; p50 at 300 rows/s was twice as long.)
    A batch that has grown to the size at which the fixed cost of a request is a small share of it is closed at
    once, and one such batch is kept ready: that is what saturation needs. When the deadline cannot be met by a
    batch of some use, useful batches are taken, oldest first; if there is more than one of them waiting, or if no
    batch was in time for a second, that is `overloaded`, until some seconds without a late batch.
    """

    _FIXED_SHARE = 0.08
    _FIXED_SHARE_MAX = 0.25
    """Of a request that would else take longer than `_REQUEST_S`."""
    _REQUEST_S = 0.25
    _TEXTS_IN_TIME_MIN = 16
    """Where fewer would be in time, speed counts more."""
    _TEXTS_MIN = 64
    """What a token costs shows only in larger batches; while it is not known, small ones may seem as good."""
    _LATE_S = 1.0
    _CALM_S = 5.0
    """Longer than it takes to become overloaded: what comes and goes is told once."""

    def __init__(self, limits: Limits, target_s: float) -> None:
        self._limits = limits
        self._target_s = target_s
        self.overloaded = False
        self.cost = CostModel()
        self._rest_s = 0.003
        self._late_at_s = 0.0
        self._late_since_s: float | None = None
        self._observed = 0

    def decide(self, now_s: float, waiting: Sequence[Waiting], running: Sequence[Running]) -> Decision:
        slack_s = waiting[0].deadline_s - now_s - self._rest_s
        wanted = sum(item.tokens for item in waiting)
        mean = wanted / len(waiting)
        affordable = self.cost.tokens_in(slack_s)
        useful = self._useful(mean)
        if wanted > useful and slack_s < self.cost.predict_s(useful):
            self._overload(now_s)
        if affordable >= self._TEXTS_IN_TIME_MIN * mean:
            tokens_max = min(useful, affordable)
        else:
            # Batches of one size would not show what a larger one costs: every other is twice as large.
            tokens_max = useful * (1 + self._observed % 2)
        count = self._limits.fitting(waiting, self._limits.batch_max, tokens_max)
        if not running:
            return Close(count)
        if len(running) > 1:
            return Wait()  # one is embedded and one is ready: a third would only be smaller than it could be
        return Close(count) if count < len(waiting) or wanted >= useful else Wait()

    def observe(self, now_s: float, finished: Finished) -> None:
        if finished.texts:
            self._observed += 1
            self.cost.observe(finished.tokens, finished.embed_s)
            rest_s = max(0.0, finished.total_s - finished.embed_s)
            self._rest_s += 0.1 * (min(rest_s, 0.05) - self._rest_s)
        if finished.latency_s > self._target_s:
            self._late_at_s = now_s
            if self._late_since_s is None:
                self._late_since_s = now_s
            elif now_s - self._late_since_s > self._LATE_S:
                self._overload(now_s)
        else:
            self._late_since_s = None
            if now_s - self._late_at_s > self._CALM_S:
                self.overloaded = False

    def idle(self, now_s: float) -> None:
        self._late_since_s = None
        if now_s - self._late_at_s > self._CALM_S:
            self.overloaded = False

    def _useful(self, mean: float) -> float:
        """Tokens beyond which a larger batch gains little, where a text has `mean` of them.

        A long request is a commitment: all that arrives meanwhile waits for it, also when the embedder gets well.
        """
        fixed = self.cost.fixed_s / self.cost.token_s
        in_time = max(self.cost.tokens_in(self._REQUEST_S), fixed / self._FIXED_SHARE_MAX)
        return max(min(fixed / self._FIXED_SHARE, in_time), min(self._TEXTS_MIN * mean, in_time), mean)

    def _overload(self, now_s: float) -> None:
        self.overloaded = True
        self._late_at_s = now_s

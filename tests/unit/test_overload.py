"""What the policies do while the embedder cannot keep up, by a virtual clock."""

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.core.batching import Aimd, Deadline, Fixed, Limits, Policy
from tests.support.batching_simulator import Machine, Outcome, Simulation

LIMITS = Limits(batch_max=500, batch_tokens_max=16_384, linger_s_max=0.005)
TARGET_S = 0.1
BEFORE_S = 3.0


def policies() -> dict[str, Policy]:
    return {"fixed": Fixed(LIMITS, 32), "aimd": Aimd(LIMITS, 32), "deadline": Deadline(LIMITS, TARGET_S)}


def run(
    policy: Policy, machine: Machine, rate: float, slow_s: float, factor: float, after_s: float, seed: int
) -> Outcome:
    """Random arrivals before, during and after the embedder is `factor` times slower."""
    draw = random.Random(seed)
    at_s, arrivals = 0.01, []
    while at_s < BEFORE_S + slow_s + after_s:
        arrivals.append((at_s, draw.randint(8, 20)))
        at_s += draw.expovariate(rate)
    slowed = Machine(
        machine.fixed_s, machine.token_s, machine.rest_s, slowed_between(BEFORE_S, slow_s, factor)
    )
    return Simulation(policy, slowed, TARGET_S).run(arrivals)


def slowed_between(begins_s: float, slow_s: float, factor: float) -> Callable[[float], float]:
    return lambda now_s: factor if begins_s <= now_s < begins_s + slow_s else 1.0


@given(
    fixed_ms=st.floats(1, 6),
    token_us=st.floats(15, 50),
    rate=st.sampled_from([20, 100, 300]),
    slow_s=st.floats(1, 5),
    factor=st.floats(1, 20),
    seed=st.integers(0, 1000),
)
@example(fixed_ms=2, token_us=25, rate=300, slow_s=5, factor=10, seed=1)
@settings(deadline=None, max_examples=25)
def test_deadline_says_overload_at_most_once_and_is_well_again_soon_after_the_embedder(
    fixed_ms: float, token_us: float, rate: float, slow_s: float, factor: float, seed: int
) -> None:
    machine = Machine(fixed_ms / 1e3, token_us / 1e6)
    policy = Deadline(LIMITS, TARGET_S)
    outcome = run(policy, machine, rate, slow_s, factor, 15.0, seed)
    assert [said for _, said in outcome.overload] in ([], [True, False]), outcome.overload
    assert outcome.recovered_after_s(BEFORE_S + slow_s, TARGET_S) <= 5.0
    assert policy.cost.predict_s(28) <= 3 * machine.service_s(0.0, 28), "it is still thought to be slow"


@pytest.mark.parametrize(
    ("fixed_ms", "token_us", "rate"),
    [(2, 25, 50), (2, 25, 100), (2, 25, 200), (2, 25, 300), (3.5, 28, 100), (5, 40, 100), (5, 40, 300)],
)
def test_deadline_has_no_more_violations_than_the_others_and_shorter_ones(
    fixed_ms: float, token_us: float, rate: float
) -> None:
    machine = Machine(fixed_ms / 1e3, token_us / 1e6)
    late = {
        name: run(policy, machine, rate, 10.0, 10.0, 5.0, 7).late(TARGET_S)
        for name, policy in policies().items()
    }
    for other in ("fixed", "aimd"):
        # Beyond what the embedder can do every change is late, whatever the policy.
        assert len(late["deadline"]) <= 1.01 * len(late[other])
        assert sum(late["deadline"]) < sum(late[other])


def test_a_request_of_an_overloaded_embedder_stays_short_enough_to_notice_that_it_is_well_again() -> None:
    machine = Machine(2e-3, 25e-6, factor=lambda _: 20.0)
    outcome = Simulation(Deadline(LIMITS, TARGET_S), machine, TARGET_S).run(
        [(n / 300, 14) for n in range(3000)]
    )
    largest = max(outcome.batches[len(outcome.batches) // 2 :])
    assert machine.service_s(0.0, largest * 14) < 0.6


def test_nothing_is_said_while_deadlines_are_met() -> None:
    outcome = run(Deadline(LIMITS, TARGET_S), Machine(), 300, 10.0, 1.5, 5.0, 7)
    assert outcome.overload == []
    assert outcome.late(TARGET_S) == []

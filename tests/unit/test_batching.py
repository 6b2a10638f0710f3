"""Each policy's rule, by the clock it is given."""

import math

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.batching import (
    Aimd,
    Close,
    CostModel,
    Deadline,
    Finished,
    Fixed,
    Limits,
    Policy,
    Running,
    Wait,
    Waiting,
)

LIMITS = Limits(batch_max=500, batch_tokens_max=16_384, linger_s_max=0.005)


def waiting(count: int, arrived_s: float = 0.0, target_s: float = 0.1, tokens: int = 14) -> list[Waiting]:
    return [Waiting(arrived_s, arrived_s + target_s, tokens)] * count


def finished(latency_s: float, texts: int = 8, embed_s: float = 0.004) -> Finished:
    return Finished(texts, texts * 14, embed_s, embed_s + 0.002, latency_s)


def test_a_lone_change_on_an_idle_daemon_goes_at_once() -> None:
    assert Deadline(LIMITS, 0.1).decide(0.0, waiting(1), []) == Close(1)


def test_deadline_collects_until_the_embedder_is_done_with_the_batch_before() -> None:
    policy = Deadline(LIMITS, 0.1)
    assert policy.decide(0.001, waiting(3), [Running(600)]) == Wait()
    assert policy.decide(9.0, waiting(3, arrived_s=9.0), [Running(600)]) == Wait()
    assert policy.decide(0.02, waiting(9), []) == Close(9)


def test_deadline_keeps_one_batch_ready_and_not_more() -> None:
    policy = Deadline(LIMITS, 0.1)
    assert policy.decide(0.0, waiting(500), [Running(600)]) == policy.decide(0.0, waiting(500), [])
    assert policy.decide(9.0, waiting(500), [Running(600), Running(600)]) == Wait()


def test_deadline_never_takes_more_than_the_oldest_can_wait_for() -> None:
    policy = Deadline(LIMITS, 0.1)
    for _ in range(200):
        policy.observe(0.0, Finished(10, 1000, 0.100, 0.105, 0.02))
        policy.observe(0.0, Finished(10, 100, 0.010, 0.015, 0.02))
    decision = policy.decide(0.0, [Waiting(0.0, 0.050, 10)] * 500, [])
    assert isinstance(decision, Close)
    assert policy.cost.predict_s(decision.count * 10) <= 0.050


def test_deadline_under_overload_takes_useful_batches_says_so_and_recovers() -> None:
    policy = Deadline(LIMITS, 0.1)
    late = policy.decide(10.0, waiting(500, arrived_s=0.0), [])
    assert policy.overloaded
    assert isinstance(late, Close)
    assert late.count >= 16
    policy.observe(10.5, finished(0.3))
    policy.observe(15.4, finished(0.02))
    assert policy.overloaded, "a few good batches are not a recovery"
    policy.observe(15.6, finished(0.02))
    assert not policy.overloaded


def test_an_idle_daemon_is_not_overloaded() -> None:
    policy = Deadline(LIMITS, 0.1)
    policy.decide(10.0, waiting(500, arrived_s=0.0), [])
    policy.idle(14.9)
    assert policy.overloaded
    policy.idle(15.1)
    assert not policy.overloaded


def test_a_few_late_changes_go_together_and_are_no_overload() -> None:
    policy = Deadline(LIMITS, 0.1)
    assert policy.decide(10.0, waiting(5, arrived_s=0.0), []) == Close(5)
    assert not policy.overloaded


def test_fixed_closes_when_full_or_when_the_oldest_has_lingered() -> None:
    policy = Fixed(LIMITS, 32)
    assert policy.decide(0.0, waiting(31), []) == Wait(0.005)
    assert policy.decide(0.005, waiting(31), []) == Close(31)
    assert policy.decide(0.0, waiting(40), []) == Close(32)


def test_aimd_is_the_published_rule_with_growth_of_at_least_one() -> None:
    policy = Aimd(LIMITS, 100)
    policy.observe(0.0, finished(0.101))
    assert policy.size == 80
    policy.observe(0.0, finished(0.049))
    assert policy.size == 88
    policy.observe(0.0, finished(0.075))
    assert policy.size == 88
    policy.size = 5
    policy.observe(0.0, finished(0.049))
    assert policy.size == 6
    for _ in range(100):
        policy.observe(0.0, finished(0.001))
    assert policy.size == 500
    for _ in range(100):
        policy.observe(0.0, finished(9.0))
    assert policy.size == 1


@given(
    fixed_ms=st.floats(0.5, 20),
    token_us=st.floats(5, 500),
    sizes=st.lists(st.integers(1, 128), min_size=60, max_size=90),
)
def test_the_cost_model_learns_what_inference_costs(
    fixed_ms: float, token_us: float, sizes: list[int]
) -> None:
    model = CostModel()
    for size in [*sizes, *[1, 128] * 20]:
        model.observe(size * 14, fixed_ms / 1e3 + token_us / 1e6 * size * 14)
    for size in (1, 64, 128):
        truth = fixed_ms / 1e3 + token_us / 1e6 * size * 14
        assert abs(model.predict_s(size * 14) - truth) <= 0.35 * truth + 0.003


def test_the_cost_model_forgives_one_stall_and_follows_a_lasting_change() -> None:
    model = CostModel()
    for _ in range(100):
        model.observe(14, 0.002)
        model.observe(448, 0.012)
    before = model.predict_s(448)
    model.observe(448, 5.0)
    assert model.predict_s(448) < 2 * before
    for _ in range(60):
        model.observe(14, 0.020)
        model.observe(448, 0.120)
    assert model.predict_s(448) > 5 * before


def test_the_cost_model_keeps_the_proportions_of_a_device_that_became_slower() -> None:
    model = CostModel()
    for _ in range(100):
        model.observe(14, 0.002 + 25e-6 * 14)
    for tokens in (14, 140, 700):
        model.observe(tokens, 10 * (0.002 + 25e-6 * tokens))
    assert abs(model.fixed_s - 0.020) < 0.002
    assert abs(model.token_s - 250e-6) < 25e-6


def late_batch(fixed_s: float, token_s: float, tokens: int = 14) -> tuple[Deadline, int]:
    """A policy that knows this cost, and the size of its batch when hundreds of changes are late."""
    policy = Deadline(LIMITS, 0.1)
    policy.cost = CostModel(fixed_s, token_s)
    decision = policy.decide(10.0, waiting(500, tokens=tokens), [])
    assert isinstance(decision, Close)
    return policy, decision.count


def test_a_late_batch_holds_no_more_than_a_short_request() -> None:
    policy, count = late_batch(0.020, 1e-3)
    assert 0.2 < policy.cost.predict_s(count * 14) < 0.26


def test_a_late_batch_is_not_so_short_that_the_fixed_cost_is_most_of_it() -> None:
    policy, count = late_batch(0.3, 1e-3)
    assert 0.2 < policy.cost.fixed_s / policy.cost.predict_s(count * 14) < 0.27


def test_a_late_batch_shows_what_a_token_costs_where_the_fixed_cost_seems_to_be_nothing() -> None:
    _, count = late_batch(1e-6, 25e-6)
    assert count == 64


def test_every_other_late_batch_is_twice_as_large_so_that_sizes_differ() -> None:
    policy, count = late_batch(0.020, 1e-3)
    policy.observe(10.0, Finished(count, count * 14, policy.cost.predict_s(count * 14), 0.3, 9.0))
    decision = policy.decide(10.0, waiting(500), [])
    assert isinstance(decision, Close)
    assert 1.9 * count < decision.count < 2.1 * count


def test_a_late_batch_has_one_text_at_least() -> None:
    assert late_batch(0.020, 1e-3, tokens=400)[1] == 1


def test_deadline_is_overloaded_when_no_batch_is_in_time_for_a_second() -> None:
    policy = Deadline(LIMITS, 0.1)
    for now_s, overloaded in ((5.0, False), (5.9, False), (6.1, True)):
        policy.observe(now_s, finished(0.15))
        assert policy.overloaded == overloaded
    policy = Deadline(LIMITS, 0.1)
    for now_s, latency_s in ((5.0, 0.15), (5.5, 0.09), (6.1, 0.15), (7.0, 0.15)):
        policy.observe(now_s, finished(latency_s))
    assert not policy.overloaded, "one was in time between"


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=600),
    st.floats(0, 5),
    st.integers(0, 5),
    st.sampled_from(["deadline", "fixed", "aimd"]),
)
def test_every_policy_stays_within_its_bounds(
    tokens: list[int], age_s: float, running: int, name: str
) -> None:
    policies: dict[str, Policy] = {
        "deadline": Deadline(LIMITS, 0.1),
        "fixed": Fixed(LIMITS, 32),
        "aimd": Aimd(LIMITS, 64),
    }
    items = [Waiting(0.0, 0.1, count) for count in tokens]
    decision = policies[name].decide(age_s, items, [Running(100)] * running)
    if isinstance(decision, Close):
        assert 1 <= decision.count <= min(len(items), LIMITS.batch_max)
        assert decision.count == 1 or sum(tokens[: decision.count]) <= LIMITS.batch_tokens_max
    else:
        assert decision.until_s > age_s or math.isinf(decision.until_s)

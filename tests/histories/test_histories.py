"""Random histories through the real daemon and worker, whole and with each rule or part of the shell taken away.

`python -m tests.support.ordering.histories 100000` runs many more.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import pytest
import structlog

from tests.support.ordering.faults import EVERY_RULE, NOT_KEPT, Fault, Rule
from tests.support.ordering.histories import Conditions, history, wrong_histories
from tests.support.shell import mutations
from tests.support.shell.mutations import Mutation

BLOCK = 100
HISTORIES = 2000
CERTAIN = 400
"""Of these, so many in which every fault happens."""
TRIES_MAX = 600


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)


@dataclass(frozen=True)
class Weakness:
    """Faults under which the want of a rule is soon felt, and the seed from which histories are tried."""

    rule: Rule
    faults: tuple[Fault, ...]
    first_seed: int = 1


WEAKNESSES = (
    Weakness(Rule.TOAST_SNAPSHOT, (Fault.REEMIT, Fault.DEAD_LETTER)),
    Weakness(Rule.R_IS_A_HINT, (Fault.SNAPSHOT_EVENTS, Fault.LONG_PAUSE)),
    Weakness(Rule.NULL_IS_A_HINT, (Fault.LOST_OFFSETS,)),
    Weakness(Rule.ROLLBACK_RECONCILE, (Fault.ROLLBACK, Fault.GAP)),
    Weakness(Rule.START_BARRIER, (Fault.GAP, Fault.LOST_OFFSETS)),
    Weakness(Rule.WIDE_XID, (Fault.REEMIT, Fault.XID_JUMP)),
    Weakness(Rule.PRIMARY_ONLY, (Fault.SNAPSHOT_EVENTS, Fault.LOST_OFFSETS)),
    Weakness(Rule.ORPHAN_SWEEP, (Fault.GAP, Fault.FAILOVER)),
)


@dataclass(frozen=True)
class BrokenShell:
    """A part of the shell taken away; the faults under which that is soon felt."""

    without: Mutation
    faults: tuple[Fault, ...]
    first_seed: int = 1

    def __str__(self) -> str:
        return self.without.__name__


# Races of their own, in tests/unit/shell/test_races.py, show the others.
BROKEN_SHELLS = (
    BrokenShell(mutations.acknowledge_before_write, (Fault.KILL, Fault.AWAY)),
    BrokenShell(mutations.trust_a_redis_that_restarted, (Fault.ROLLBACK,)),
)


@pytest.mark.parametrize("first_seed", range(1, HISTORIES + 1, BLOCK))
def test_at_rest_the_index_equals_the_table(first_seed: int) -> None:
    conditions = Conditions(certain=first_seed > HISTORIES - CERTAIN)
    wrong = wrong_histories(range(first_seed, first_seed + BLOCK), conditions)
    assert [(end.seed, end.wrong) for end in islice(wrong, 3)] == []


@pytest.mark.parametrize("weakness", WEAKNESSES, ids=lambda weakness: weakness.rule.name.lower())
def test_without_any_one_rule_a_history_ends_wrong(weakness: Weakness) -> None:
    seeds = range(weakness.first_seed, weakness.first_seed + TRIES_MAX)
    broken = Conditions(EVERY_RULE - {weakness.rule}, weakness.faults, certain=True)
    wrong = next(iter(wrong_histories(seeds, broken)), None)
    assert wrong is not None, f"no history is the worse for it: {NOT_KEPT[weakness.rule]}"
    kept = Conditions(faults=weakness.faults, certain=True)
    assert history(wrong.seed, kept).wrong == []


def test_every_rule_is_switched_off_once() -> None:
    """What is older than a marker's life is one of tests/unit/shell/test_races.py: histories are too short for it."""
    shown = {weakness.rule for weakness in WEAKNESSES} | {Rule.TTL_GUARD}
    assert shown == EVERY_RULE == set(NOT_KEPT)


@pytest.mark.parametrize("broken", BROKEN_SHELLS, ids=str)
def test_with_a_part_of_the_shell_taken_away_a_history_ends_wrong(broken: BrokenShell) -> None:
    seeds = range(broken.first_seed, broken.first_seed + TRIES_MAX)
    conditions = Conditions(faults=broken.faults, certain=True)
    mutation: AbstractContextManager[None] = broken.without()
    with mutation:
        wrong = next(iter(wrong_histories(seeds, conditions)), None)
    assert wrong is not None, "no history is the worse for it"
    assert history(wrong.seed, conditions).wrong == []

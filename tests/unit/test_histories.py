"""The version rule of `daemon.core.version` and the rules around it, through random histories."""

from dataclasses import dataclass
from itertools import islice

import pytest

from tests.support.ordering.faults import EVERY_RULE, NOT_KEPT, Fault, Rule
from tests.support.ordering.histories import Conditions, wrong_histories
from tests.support.ordering.python_index import PythonIndex

BLOCK = 500
HISTORIES_MAX = 2000


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
    Weakness(Rule.TTL_GUARD, (Fault.LONG_PAUSE, Fault.DEAD_LETTER, Fault.TORN_SWEEP)),
    Weakness(Rule.ROLLBACK_RECONCILE, (Fault.ROLLBACK, Fault.SNAPSHOT_EVENTS), first_seed=100),
    Weakness(Rule.START_BARRIER, (Fault.GAP, Fault.LOST_OFFSETS)),
    Weakness(Rule.WIDE_XID, (Fault.REEMIT, Fault.XID_JUMP)),
    Weakness(Rule.PRIMARY_ONLY, (Fault.SNAPSHOT_EVENTS, Fault.LOST_OFFSETS)),
    Weakness(Rule.ORPHAN_SWEEP, (Fault.REEMIT, Fault.FAILOVER)),
)


@pytest.mark.parametrize("certain", [False, True], ids=["some_faults", "every_fault"])
@pytest.mark.parametrize("first_seed", range(1, 2501, BLOCK))
def test_at_rest_the_index_equals_the_table(first_seed: int, certain: bool) -> None:
    seeds = range(first_seed, first_seed + BLOCK)
    wrong = wrong_histories(seeds, PythonIndex, Conditions(certain=certain))
    assert list(islice(wrong, 3)) == []


@pytest.mark.parametrize("weakness", WEAKNESSES, ids=lambda weakness: weakness.rule.name.lower())
def test_without_any_one_rule_a_row_is_wrong(weakness: Weakness) -> None:
    seeds = range(weakness.first_seed, weakness.first_seed + HISTORIES_MAX)
    broken = Conditions(EVERY_RULE - {weakness.rule}, weakness.faults, certain=True)
    wrong = next((end for end in wrong_histories(seeds, PythonIndex, broken) if end.table != end.index), None)
    assert wrong is not None, f"no history is the worse for it: {NOT_KEPT[weakness.rule]}"
    kept = Conditions(faults=weakness.faults, certain=True)
    assert list(wrong_histories([wrong.seed], PythonIndex, kept)) == []


def test_every_rule_is_switched_off_once() -> None:
    assert {weakness.rule for weakness in WEAKNESSES} == EVERY_RULE == set(NOT_KEPT)

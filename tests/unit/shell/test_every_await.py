"""Whatever goes wrong at any one call over an edge, the index ends equal to the table, and no offset is ahead of it.

One life of a few rows is run once, and its calls are counted; then it is run again for each call and each fault.
"""

import asyncio
from collections.abc import Callable

import pytest

from daemon.index.layout import Layout
from daemon.settings import Config
from tests.support.shell.faults import Call, Delay, Fault, LoseAnswer, Meanwhile, Reject, at
from tests.support.shell.shell import PIPELINE, Shell, configuration, run
from tests.support.shell.witness import Witness

LATENCY_S = 0.0005
BLOCK = 20
"""Calls in one test: so many that a failure names the neighbourhood, so few that it is soon told."""

FaultAt = Callable[[Shell], Fault]


async def life(shell: Shell) -> None:
    """Rows are there before the start, change in every way, and are at rest; the process ends and begins again."""
    database = shell.servers.database
    shell.servers.faults.latency_s = lambda: LATENCY_S
    database.write({1: "one", 2: "two", 3: "three"})
    shell.start()
    await asyncio.sleep(0.05)
    hidden = database.write({1: "uno", 4: "four"}, visible=False)
    database.beat()
    await asyncio.sleep(0.05)
    database.appear(hidden)
    database.update_other_column(2)
    database.emit_snapshot(3)
    database.write({3: None})
    await asyncio.sleep(0.3)
    database.truncate()
    database.write({2: "zwei", 5: "five"})


async def rest(shell: Shell, witness: Witness) -> None:
    """Nothing is lost, nothing is left."""
    while True:
        await shell.ensure_started()
        await shell.until(lambda: shell.ended or not shell.unacknowledged(), "all records are acknowledged")
        if not shell.ended:
            break
    assert shell.documents() == shell.servers.database.table()
    assert shell.reconcile_reasons() == set()
    await shell.stop()
    await shell.process.gone()
    assert not shell.unacknowledged()
    witness.check()


def calls_of_a_life(config: Config) -> list[Call]:
    async def main(shell: Shell) -> list[Call]:
        witness = Witness(shell.servers, Layout(PIPELINE, 1))
        await life(shell)
        await rest(shell, witness)
        return shell.servers.faults.calls

    return run(main, config, record=True)


def run_with(config: Config, number: int, fault_at: FaultAt) -> None:
    async def main(shell: Shell) -> None:
        witness = Witness(shell.servers, Layout(PIPELINE, 1))
        shell.servers.faults.script = at(number, fault_at(shell))
        await life(shell)
        await rest(shell, witness)

    run(main, config)


CONFIG = configuration()
CALLS = calls_of_a_life(CONFIG)


def _rebalance(shell: Shell) -> Fault:
    def act() -> None:
        group = shell.servers.broker.group(CONFIG.kafka.group_id)
        group.rebalance(absent=[(shell.servers.database.topic, 0)])
        asyncio.get_running_loop().call_later(0.2, group.rebalance, ())

    return Meanwhile(act)


def _lose_partitions(shell: Shell) -> Fault:
    def act() -> None:
        group = shell.servers.broker.group(CONFIG.kafka.group_id)
        for member in list(group.members):
            group.take_away(member, list(member.owned))
        asyncio.get_running_loop().call_later(0.2, group.rebalance, ())

    return Meanwhile(act)


FAULTS: dict[str, FaultAt] = {
    "refused": lambda _: Reject(),
    "its_answer_lost": lambda _: LoseAnswer(),
    "applied_in_part": lambda _: LoseAnswer(applied=1),
    "slow": lambda _: Delay(3.0),
    "killed": lambda shell: Meanwhile(shell.die),
    "told_to_stop": lambda shell: Meanwhile(lambda: shell.edges.stop.set()),
    "a_rebalance_meanwhile": _rebalance,
    "partitions_lost_meanwhile": _lose_partitions,
}


@pytest.mark.parametrize("first", range(0, len(CALLS), BLOCK))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_call_costs_nothing(fault: str, first: int) -> None:
    wrong = []
    for call in CALLS[first : first + BLOCK]:
        try:
            run_with(CONFIG, call.number, FAULTS[fault])
        except AssertionError as error:
            wrong.append(f"{fault} at {call}: {error}")
    assert not wrong, "\n".join(wrong)

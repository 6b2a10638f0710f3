"""Races and losses of the shell, one by one: each holds, and is red without what makes it hold."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from daemon.errors import StopProcess
from daemon.index.layout import Layout, pipeline_key
from daemon.index.registry import IndexVersion
from daemon.settings import BatchingSettings, RetrySettings
from tests.support.ordering.faults import Rule
from tests.support.ordering.rules import NOT_KEPT_BY
from tests.support.shell import mutations
from tests.support.shell.backfill import Worker, reached_through_edges
from tests.support.shell.faults import Call, Fault, Hold, Reject
from tests.support.shell.mutations import Mutation
from tests.support.shell.shell import PIPELINE, Shell, configuration, run
from tests.support.shell.witness import Witness

AT_ONCE_S = 2.0
"""In which a live change is searchable, whatever else goes on."""
WATCHED_S = 130.0
"""In which the source is surely looked at twice."""


async def begin(shell: Shell) -> Witness:
    """Two rows are in the index, and the daemon is at rest."""
    shell.servers.faults.latency_s = lambda: 0.0005
    shell.servers.database.write({1: "one", 2: "two"})
    witness = Witness(shell.servers, Layout(PIPELINE, 1))
    shell.start()
    await shell.settled()
    return witness


async def change_is_seen(shell: Shell, key: int, text: str, within_s: float = AT_ONCE_S) -> None:
    shell.servers.database.write({key: text})
    await shell.until(
        lambda: shell.documents().get(str(key), ("", 0))[0] == text,
        f"{key} is {text!r} in the index",
        within_s,
    )


async def no_offset_is_committed_before_its_effect(shell: Shell) -> None:
    witness = await begin(shell)
    hold = Hold()
    shell.servers.faults.script = lambda call: hold if call.name == "embed" else None
    shell.servers.database.write({1: "uno", 3: "three"})
    await asyncio.sleep(5)
    witness.check()
    shell.servers.faults.script = lambda _: None
    await shell.restart()
    await shell.settled()
    assert shell.documents() == shell.servers.database.table()


async def a_rewritten_table_is_marked_though_redis_stumbles(shell: Shell) -> None:
    await begin(shell)
    await asyncio.sleep(WATCHED_S)
    database = shell.servers.database
    database.schema = replace(database.schema, filenode=17_000)
    _refuse_marks_once(shell)
    await asyncio.sleep(WATCHED_S)
    assert "table_rewritten" in shell.reconcile_reasons()


async def a_new_era_is_marked_though_redis_stumbles(shell: Shell) -> None:
    await begin(shell)
    await asyncio.sleep(WATCHED_S)
    await shell.stop()
    [source] = shell.config.sources
    shell.config = shell.config.model_copy(update={"sources": (source.model_copy(update={"era": 1}),)})
    shell.servers.database.timeline = 2
    _refuse_marks_once(shell)
    shell.start()
    await asyncio.sleep(WATCHED_S)
    assert "era_began" in shell.reconcile_reasons()


def _refuse_marks_once(shell: Shell) -> None:
    refused: list[Call] = []

    def script(call: Call) -> Fault | None:
        if call.name == "HSET" and call.subject.endswith((":gaps", ":reconcile")) and not refused:
            refused.append(call)
            return Reject()
        return None

    shell.servers.faults.script = script


async def register(shell: Shell, model: str) -> int:
    """Register another index version, as `livevec reindex` does."""
    keyspace, key = shell.servers.redis.keyspace, pipeline_key(PIPELINE, "versions")
    first = IndexVersion.decode(keyspace.hash(key)[b"1"])
    second = replace(first, number=2, model=model, fingerprint=f"fingerprint of {model}")
    keyspace.hash_set(key, {b"2": second.encode(), b"last": b"2"})
    return 2


async def two_failing_batches_of_an_unseen_version_end_nothing(shell: Shell) -> None:
    await begin(shell)
    await register(shell, "unfit")
    await shell.until(lambda: "lv:docs:writers:2" in shell.servers.redis.keyspace.values)
    hold = Hold()
    shell.servers.provider.refuses = lambda model, _: StopProcess("gone") if model == "unfit" else None
    shell.servers.faults.script = lambda call: hold if call.subject == "unfit" else None
    for number in range(3, 6):
        shell.servers.database.write({number: f"text {number}"})
        await asyncio.sleep(0.5)
    hold.released.set()
    await shell.settled()
    await asyncio.sleep(5)
    assert not shell.ended, f"the process has ended: {shell.failure!r}"
    assert shell.documents() == shell.servers.database.table()
    assert b"failed:2" in shell.servers.redis.keyspace.hash(pipeline_key(PIPELINE, "versions"))


async def a_version_whose_model_is_away_holds_up_nobody(shell: Shell) -> None:
    await begin(shell)
    await register(shell, "away")
    shell.servers.provider.away.add("away")
    await shell.restart()
    await change_is_seen(shell, 3, "after the start")
    group = shell.servers.broker.group(shell.config.kafka.group_id)
    group.rebalance(absent=[(shell.servers.database.topic, 0), (shell.servers.database.topic, 1)])
    await asyncio.sleep(30)
    group.rebalance(absent=())
    await change_is_seen(shell, 4, "after the rebalance")
    await change_is_seen(shell, 5, "and on")
    shell.servers.provider.away.clear()
    await shell.settled()
    assert set(shell.documents(version=2)) == {"3", "4", "5"}


async def a_lone_change_does_not_wait_for_a_sweep(shell: Shell) -> None:
    await begin(shell)
    hold = Hold()
    shell.servers.faults.script = lambda call: hold if call.name == "livevec_sweep" else None
    shell.servers.database.truncate()
    await asyncio.sleep(1)
    await change_is_seen(shell, 3, "meanwhile")
    assert shell.unacknowledged(), "the sweep was not held"
    hold.released.set()
    await shell.settled()
    assert shell.documents() == shell.servers.database.table()


async def an_old_offset_is_not_committed_after_a_revocation(shell: Shell) -> None:
    witness = await begin(shell)
    group = shell.servers.broker.group(shell.config.kafka.group_id)
    hold = Hold()
    shell.servers.faults.script = lambda call: hold if call.name == "embed" else None
    shell.servers.database.write({1: "uno", 2: "due", 3: "tre"})
    await asyncio.sleep(1)
    [member] = group.members
    group.take_away(member, list(member.owned))
    other = Shell(shell.loop, shell.servers, shell.config)
    shell.servers.faults.script = lambda _: None
    group.absent.clear()
    group.members.remove(member)
    other.start()
    await other.settled()
    shell.servers.database.write({4: "quattro", 5: "cinque"})
    await other.settled()
    await other.stop()
    group.members.append(member)
    group.rebalance()
    await asyncio.sleep(1)
    hold.released.set()
    await asyncio.sleep(2)
    shell.servers.database.write({6: "sei"})
    await shell.settled()
    assert shell.documents() == shell.servers.database.table()
    witness.check()


async def what_is_older_than_a_markers_life_is_read_again(shell: Shell) -> None:
    await begin(shell)
    database = shell.servers.database
    database.write({3: "three"})
    [upsert] = [event for event in database.model.log if event.key == 3]
    database.write({3: None})
    await shell.settled()
    shell.loop.jump(2 * shell.config.redis.delete_marker_ttl_s)
    database.emit(upsert)
    await shell.settled()
    assert shell.documents() == database.table()


async def a_mark_that_comes_up_again_is_dealt_with_again(shell: Shell) -> None:
    await begin(shell)
    worker, hold, keyspace = Worker(shell.loop, shell), Hold(), shell.servers.redis.keyspace
    key = pipeline_key(PIPELINE, "reconcile")
    shell.servers.faults.script = lambda call: hold if call.name == "chunk" else None
    keyspace.hash_set(key, {b"redis_went_back": b"1700000000.5"})
    with reached_through_edges():
        worker.start()
        await asyncio.sleep(1)
        keyspace.hash_set(key, {b"redis_went_back": b"1700000001.5"})
        hold.released.set()
        await shell.until(lambda: worker.idle, "the worker is idle")
        await worker.kill()
    assert worker.backfills == 2, "what came up during the first backfill was taken for done"


@dataclass(frozen=True)
class Race:
    holds: Callable[[Shell], Awaitable[object]]
    without: Mutation

    def __str__(self) -> str:
        return self.holds.__name__


RACES = (
    Race(no_offset_is_committed_before_its_effect, mutations.acknowledge_before_write),
    Race(a_rewritten_table_is_marked_though_redis_stumbles, mutations.store_before_mark),
    Race(a_new_era_is_marked_though_redis_stumbles, mutations.store_before_mark),
    Race(two_failing_batches_of_an_unseen_version_end_nothing, mutations.give_up_each_time),
    Race(a_version_whose_model_is_away_holds_up_nobody, mutations.wait_for_every_model),
    Race(a_lone_change_does_not_wait_for_a_sweep, mutations.sweep_in_turn),
    Race(a_mark_that_comes_up_again_is_dealt_with_again, mutations.clear_marks_by_name),
    Race(what_is_older_than_a_markers_life_is_read_again, NOT_KEPT_BY[Rule.TTL_GUARD]),
    Race(an_old_offset_is_not_committed_after_a_revocation, mutations.drop_a_revoke),
)
# One change in a batch, so that several batches are in flight.
CONFIG = configuration(
    retry=RetrySettings(stuck_version_s_max=3600.0),
    batching=BatchingSettings(policy="fixed", fixed_size=1, linger_ms_max=0),
)


def lived(race: Race) -> None:
    async def main(shell: Shell) -> None:
        await race.holds(shell)

    run(main, CONFIG)


@pytest.mark.parametrize("race", RACES, ids=str)
def test_it_holds(race: Race) -> None:
    lived(race)


@pytest.mark.parametrize("race", RACES, ids=str)
def test_it_is_red_without_its_mend(race: Race) -> None:
    with race.without(), pytest.raises((AssertionError, ValueError)):
        lived(race)

"""Random histories of a table, brought into the index by the real daemon and worker, until everything is at rest.

A history is the whole of its seed. At its end the index equals the table, no task is left, what was read adds up to
what became of it; and at no moment was an offset committed without its effect, or did a reader see a row go back.

    python -m tests.support.ordering.histories 100000 [first seed]
"""

import asyncio
import random as global_random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

from daemon.errors import LivevecError, RejectRow
from daemon.index.layout import Layout, positions_key, source_key
from daemon.settings import BatchingSettings, Config, KafkaSettings, RedisSettings, RetrySettings
from tests.support.ordering.faults import EVERY_FAULT, EVERY_RULE, Fault, Rule
from tests.support.ordering.postgres import PARTITIONS, Server
from tests.support.ordering.rules import NOT_KEPT_BY
from tests.support.shell import clock
from tests.support.shell.backfill import Worker, reached_through_edges
from tests.support.shell.clock import VirtualLoop
from tests.support.shell.faults import Call, Delay, LoseAnswer, Reject
from tests.support.shell.faults import Fault as FaultOfACall
from tests.support.shell.servers import Servers
from tests.support.shell.shell import PIPELINE, Shell, configuration
from tests.support.shell.witness import Witness

FAULT_SHARE = 0.4
MARKER_TTL_S = 16 * 3600
_TRANSACTIONS_MAX = 4
_XIDS_USED_UP = (1 << 31) - 5000
_ANCHOR_INTERVAL_S = 3601.0
_SETTLES_WITHIN_S = 1800.0
_STEP_S_MAX = 0.02


@dataclass(frozen=True)
class Conditions:
    """Under which a history takes place.

    Attributes:
        rules: those of livevec that are kept.
        faults: that may happen.
        certain: every fault of `faults` happens in every history that has the occasion.
    """

    rules: Set[Rule] = EVERY_RULE
    faults: Iterable[Fault] = EVERY_FAULT
    certain: bool = False


@dataclass
class End:
    """How a history ended.

    Attributes:
        wrong: what was not as it must be; empty: nothing.
        read: records that the last life of the daemon read.
    """

    seed: int
    wrong: list[str] = field(default_factory=list)
    read: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


def wrong_histories(seeds: Iterable[int], conditions: Conditions | None = None) -> Iterator[End]:
    """The histories that end wrong, as they are found."""
    for seed in seeds:
        end = history(seed, conditions)
        if end.wrong:
            yield end


def history(seed: int, conditions: Conditions | None = None) -> End:
    """Run one."""
    conditions = conditions or Conditions()
    global_random.seed(seed)
    with ExitStack() as stack:
        stack.enter_context(reached_through_edges())
        for rule in EVERY_RULE - conditions.rules:
            stack.enter_context(NOT_KEPT_BY[rule]())
        try:
            return clock.run(lambda loop: History(loop, seed, conditions).run())
        except (AssertionError, LivevecError) as error:
            return End(seed, [f"{type(error).__name__}: {error}"])


class History:
    def __init__(self, loop: VirtualLoop, seed: int, conditions: Conditions) -> None:
        self._loop = loop
        self._seed = seed
        self._random = random = Random(seed)
        self._faults = frozenset(
            fault for fault in conditions.faults if conditions.certain or random.random() < FAULT_SHARE
        )
        self._rules = conditions.rules
        self._steps = random.choice((60, 100, 160))
        self._start = random.randrange(0, 20)
        self._standby_lag = random.randrange(5, 30)
        self._extra_backfills = random.choice((0.0, 0.25, 1.0))
        self._latency_s = random.choice((0.0003, 0.001, 0.004))
        config = _config(random)
        self._servers = servers = Servers(config, random, PARTITIONS)
        self._database = servers.database
        self._model = servers.database.model
        self._model.server.streaming = False
        self._witness = Witness(servers, Layout(PIPELINE, 1))
        self._shell = Shell(loop, servers, config)
        self._worker = Worker(loop, self._shell, rows_per_read=random.choice((1, 2, 4)))
        self._worker.with_barrier = Rule.START_BARRIER in self._rules
        self._worker.with_sweep = Rule.ORPHAN_SWEEP in self._rules
        self._standby: Server | None = None
        self._gap_ends: int | None = None
        self._go_back: Callable[[], None] | None = None
        self._proven = 0
        self._noted = -1
        servers.batch_records = lambda: random.choice((1, 3, 500))
        servers.faults.latency_s = lambda: random.random() * self._latency_s
        servers.faults.script = self._script
        if Fault.DEAD_LETTER in self._faults:
            servers.provider.refuses = self._refuse

    async def run(self) -> End:
        try:
            for step in range(self._steps):
                await asyncio.sleep(self._random.random() * _STEP_S_MAX)
                await self._scheduled(step)
                await self._unlucky()
                await self._something()
                await self._keep_running(step)
            return await self._at_rest()
        finally:
            await self._worker.kill()
            if not self._shell.ended:
                await self._shell.kill()
            await self._shell.process.gone()

    # ---- the processes

    async def _keep_running(self, step: int) -> None:
        """Start again what was killed, some steps later."""
        if step < self._start or self._random.random() < 0.8:
            return
        await self._shell.ensure_started()

    async def _restart(self) -> None:
        await self._shell.kill()
        await self._worker.kill()
        self._shell.start()
        self._worker.start()

    # ---- what happens to a call

    def _script(self, call: Call) -> FaultOfACall | None:
        random = self._random
        sweeps, writes = ("livevec_sweep", "livevec_raise_floor"), ("livevec_touch", "livevec_put")
        if Fault.TORN_SWEEP in self._faults and call.name in sweeps and random.random() < 0.3:
            return LoseAnswer(applied=random.randrange(6))
        if Fault.PLAN_RACE in self._faults and call.name in writes and random.random() < 0.2:
            return Delay(random.random() * 0.3)
        if Fault.AWAY in self._faults:
            dice = random.random()
            if dice < 0.02:
                return Reject()
            if dice < 0.04:
                return LoseAnswer(applied=random.choice((None, None, 1)))
            if dice < 0.06:
                return Delay(random.random() * 0.2)
        return None

    def _refuse(self, model: str, text: str) -> RejectRow | None:
        del model, text
        return RejectRow("not now", "refused_by_model") if self._random.random() < 0.1 else None

    # ---- what happens at a certain step

    async def _scheduled(self, step: int) -> None:
        server = self._model.server
        if step == self._start:
            server.streaming = True
            server.last_commit_lsn = server.lsn
            self._shell.start()
            self._worker.want_backfill()
            self._worker.start()
        if Fault.FAILOVER in self._faults and step == self._start + 30 and not self._committing():
            self._standby = self._model.standby()
        if self._standby and step == self._start + 30 + self._standby_lag:
            await self._fail_over(self._standby)
        if Fault.GAP in self._faults and step == self._start + 25 and not self._standby:
            server.streaming = False
            self._gap_ends = step + 15
        if self._gap_ends == step:
            self._model.server.streaming = True
            self._worker.want_backfill()

    async def _fail_over(self, standby: Server) -> None:
        """What the standby lacks is lost; a person raises the source's era, and has all rows read again."""
        self._model.fail_over_to(standby)
        self._standby = None
        self._witness.watches_readers = False
        self._database.timeline += 1
        await self._shell.kill()
        await self._worker.kill()
        config = self._shell.config
        [source] = config.sources
        source = source.model_copy(update={"era": self._model.server.era})
        self._shell.config = config.model_copy(update={"sources": (source,)})
        self._worker.want_backfill()
        self._shell.start()
        self._worker.start()

    async def _unlucky(self) -> None:
        random, faults = self._random, self._faults
        if Fault.LOST_OFFSETS in faults and random.random() < 0.015:
            self._model.server.last_commit_lsn = None
        if Fault.ROLLBACK in faults and self._model.server.streaming and random.random() < 0.03:
            self._roll_back()
        if Fault.SNAPSHOT_EVENTS in faults and self._model.log and random.random() < 0.03:
            self._database.emit_snapshot(random.choice(list(self._model.server.chain)))
        if self._shell_has_begun and Fault.REBALANCE in faults and random.random() < 0.05:
            self._rebalance()
        if self._shell_has_begun and Fault.KILL in faults and random.random() < 0.03:
            await self._kill()
        if self._shell_has_begun and Fault.RETENTION in faults and random.random() < 0.01:
            await self._forget_records()
        if random.random() < 0.1:
            self._database.beat()

    @property
    def _shell_has_begun(self) -> bool:
        return hasattr(self._shell, "process")

    def _roll_back(self) -> None:
        """Redis comes back as it was the last time this was called; it is not the same process any more.

        After a crash it has all that it has told to be on disk. A copy that was put back may be older than that: it
        is noticed where a position shows it, and here the messages of each second see to that.
        """
        redis = self._servers.redis
        if Fault.XID_JUMP in self._faults:
            return  # a Redis that loses anchors leaves more than 2^31 ids between two, which is more than is promised
        if not redis.keyspace.there(source_key(self._database.source_name, "anchors")):
            # Changes of an era of which no anchor is left cannot be read by a daemon of the next: see docs/testing.md.
            return
        position = self._position_of_messages()
        is_noticed = self._proven == redis.proven or position > self._noted
        if self._go_back is None or not is_noticed:
            self._go_back, self._proven, self._noted = redis.checkpoint(), redis.proven, position
            return
        if self._proven != redis.proven:
            # A backfill that goes on over a copy may remove what the next one brings back.
            self._witness.watches_readers = False
        self._go_back()
        self._go_back = None
        redis.run_id += 1

    def _position_of_messages(self) -> int:
        stored = self._servers.redis.keyspace.hash(positions_key(self._shell.config.kafka.group_id, "0"))
        return int(stored.get(f"{self._database.message_topic}/0".encode(), b"0:-1").partition(b":")[2])

    def _rebalance(self) -> None:
        group = self._servers.broker.group(self._shell.config.kafka.group_id)
        partitions = self._servers.broker.partitions_of(self._database.topic)
        if self._random.random() < 0.3 and group.members:
            group.take_away(group.members[0], self._random.sample(partitions, 1))
        else:
            group.rebalance(self._random.choice(([], [], partitions[:1], partitions[1:], partitions)))

    async def _kill(self) -> None:
        if self._random.random() < 0.3:
            await self._worker.kill()
            self._worker.start()
        else:
            self._shell.die()

    async def _forget_records(self) -> None:
        """The daemon is down for longer than the topic keeps records."""
        self._shell.die()
        await self._shell.process.gone()
        for _ in range(self._random.randrange(6)):
            await self._something()
        committed = self._servers.broker.group(self._shell.config.kafka.group_id).committed
        for partition in self._servers.broker.partitions_of(self._database.topic):
            if partition not in committed:
                continue  # that nothing of it was ever read tells nobody that something is gone
            log = self._servers.broker.logs[partition]
            self._servers.broker.forget_before(partition, self._random.randint(log.first, log.end))

    # ---- what happens at any step

    async def _something(self) -> None:
        """One of these, the first whose bound the dice is below and that is possible."""
        model, random = self._model, self._random
        dice = random.random()
        live = list(model.server.transactions)
        if dice < 0.2 and len(live) < _TRANSACTIONS_MAX:
            model.act(model.begin())
        elif dice < 0.5 and live:
            model.act(random.choice(live))
        elif dice < 0.7 and live:
            self._commit_or_abort(random.choice(live))
        elif dice < 0.88:
            if committing := self._committing():
                model.become_visible(random.choice(committing))
        elif dice < 0.91 and Fault.REEMIT in self._faults and model.log:
            for event in model.log[random.randrange(len(model.log)) :]:
                self._database.emit(event)
        elif dice < 0.91 + 0.015 * self._extra_backfills and self._shell_has_begun:
            self._worker.want_backfill()
        elif dice < 0.955 and Fault.XID_JUMP in self._faults and not live:
            await self._use_up_xids()
        elif dice < 0.975 and Fault.LONG_PAUSE in self._faults:
            await self._pause()

    def _committing(self) -> list[int]:
        transactions = self._model.server.transactions
        return [xid for xid, transaction in transactions.items() if transaction.committed_s is not None]

    def _commit_or_abort(self, xid: int) -> None:
        if self._random.random() < 0.08 and xid not in self._committing():
            self._model.abort(xid)
        else:
            self._model.write_commit_record(xid, time.time())

    async def _use_up_xids(self) -> None:
        """As many as pass between two anchors at most; an hour passes before and after."""
        if not self._shell_has_begun or self._shell.ended:
            return
        script, self._servers.faults.script = self._servers.faults.script, lambda _: None
        await self._no_call_is_in_flight()
        for _ in range(self._random.randint(1, 3)):
            self._loop.jump(_ANCHOR_INTERVAL_S)
            await asyncio.sleep(0.2)
            self._model.use_up_xids(_XIDS_USED_UP)
            self._loop.jump(_ANCHOR_INTERVAL_S)
            await asyncio.sleep(0.2)
        self._servers.faults.script = script

    async def _no_call_is_in_flight(self) -> None:
        while self._servers.faults.in_flight:  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(0.001)

    async def _pause(self) -> None:
        """The machine was suspended. No commit stays invisible for so long, and no call goes on for so long."""
        await self._no_call_is_in_flight()
        for xid in self._committing():
            self._model.become_visible(xid)
        self._loop.jump(MARKER_TTL_S / 2 + self._random.random() * MARKER_TTL_S)

    # ---- the end

    async def _at_rest(self) -> End:
        """Every transaction ends, every server answers, and all is delivered."""
        end = End(self._seed)
        self._end_transactions()
        servers, shell = self._servers, self._shell
        await shell.ensure_started()
        group = servers.broker.group(shell.config.kafka.group_id)
        group.rebalance(absent=())
        await asyncio.sleep(self._random.random())
        for xid in list(self._model.server.transactions):
            self._model.become_visible(xid)
        servers.faults.script = lambda _: None
        servers.provider.refuses = lambda *_: None
        ends_at_s = self._loop.time() + _SETTLES_WITHIN_S
        while self._loop.time() < ends_at_s:
            # A Redis that went back shows with the next position that is written.
            self._database.beat()
            await asyncio.sleep(1.5)
            await shell.ensure_started()
            if not shell.unacknowledged() and self._worker.idle and PIPELINE in servers.redis.aliases:
                break
        else:
            behind, idle = shell.unacknowledged(), self._worker.idle
            end.wrong.append(f"not at rest: {behind} unacknowledged, the worker is idle: {idle}")
        table, index = self._database.table(), shell.documents()
        if table != index:
            end.wrong.append(f"the table is {table} and the index {index}")
        end.wrong += self._witness.wrong
        await self._worker.kill()
        self._add_up(end)
        await shell.stop()
        await shell.process.gone()
        return end

    def _add_up(self, end: End) -> None:
        outcomes = self._shell.outcomes()
        read = self._shell.service.metrics.registry.get_sample_value(
            "livevec_changes_read_total", {"pipeline": PIPELINE}
        )
        end.read, end.outcomes = (
            int(read or 0),
            {name: int(count) for name, count in outcomes.items() if count},
        )
        if end.read != sum(end.outcomes.values()):
            end.wrong.append(f"{end.read} records were read, and their outcomes are {end.outcomes}")

    def _end_transactions(self) -> None:
        model = self._model
        for xid in list(model.server.transactions):
            for _ in range(3):
                if xid in model.server.transactions and model.server.transactions[xid].early:
                    model.check_unique(xid)
            if xid in model.server.transactions:
                if model.server.transactions[xid].early:
                    model.abort(xid)
                else:
                    model.write_commit_record(xid, time.time())


_CONFIGS: dict[tuple[int, int], Config] = {}


def _config(random: Random) -> Config:
    commands, interval_ms = random.choice((1, 3, 16)), random.choice((20, 200))
    if (commands, interval_ms) not in _CONFIGS:
        _CONFIGS[commands, interval_ms] = configuration(
            redis=RedisSettings(
                url="redis://fake.invalid", pipeline_commands_max=commands, delete_marker_ttl_s=MARKER_TTL_S
            ),
            kafka=KafkaSettings(bootstrap_servers="fake.invalid:9092", commit_interval_ms=interval_ms),
            batching=BatchingSettings(),
            retry=RetrySettings(backoff_ms_min=20, backoff_ms_max=200),
        )
    return _CONFIGS[commands, interval_ms]


def main(arguments: list[str]) -> int:
    """Run so many histories, and tell how many were wrong."""
    count, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 1
    begun_s, wrong, read = time.perf_counter(), 0, 0
    for seed in range(first, first + count):
        end = history(seed)
        read += end.read
        if end.wrong:
            wrong += 1
            print(f"seed {seed}: " + "; ".join(end.wrong), flush=True)
        done = seed - first + 1
        if done % 1000 == 0 or done == count:
            pace_s = (time.perf_counter() - begun_s) / done
            print(f"{done:,} histories, {wrong} wrong, {1000 * pace_s:.0f} s for 1,000", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sys.exit(main(sys.argv[1:]))

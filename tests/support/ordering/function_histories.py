"""One random history, from the first transaction until everything has been delivered and is at rest.

A history is the whole of its seed: the same seed, rules and faults give the same history on every index that
keeps the version rule.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from random import Random

from tests.support.ordering.faults import EVERY_RULE, OF_THE_FUNCTIONS, Fault, Rule
from tests.support.ordering.feeder import Feeder
from tests.support.ordering.index import MARKER_TTL_S, Index
from tests.support.ordering.postgres import KEYS, PARTITIONS, Event, Postgres, Server

FAULT_SHARE = 0.4
_TRANSACTIONS_MAX = 4
_XIDS_USED_UP = (1 << 31) - 5000
# Assumed of the source: no commit stays invisible for longer than half the life of a marker.
_INVISIBLE_S_MAX = MARKER_TTL_S // 3
_SETTLE_STEPS_MAX = 5000


@dataclass(frozen=True)
class End:
    """What the table and the index hold at the end of a history.

    Attributes:
        at_rest: everything was delivered; otherwise something would be tried for ever.
    """

    seed: int
    at_rest: bool
    table: dict[int, str | None]
    index: dict[int, str | None]

    @property
    def wrong(self) -> bool:
        return not self.at_rest or self.table != self.index


@dataclass(frozen=True)
class Conditions:
    """Under which a history takes place.

    Attributes:
        certain: every fault of `faults` happens in every history that has the occasion.
        xmin_is_the_lsn: snapshots carry the WAL position of the read where xmin stands. The version rule does
            not look at xmin; a rule that compared positions would need it.
    """

    rules: Set[Rule] = EVERY_RULE
    faults: Iterable[Fault] = OF_THE_FUNCTIONS
    certain: bool = False
    xmin_is_the_lsn: bool = False


def wrong_histories(
    seeds: Iterable[int], new_index: Callable[[], Index], conditions: Conditions | None = None
) -> Iterator[End]:
    """The histories that do not end with the index equal to the table, as they are found."""
    for seed in seeds:
        end = History(seed, new_index(), conditions or Conditions()).run()
        if end.wrong:
            yield end


class History:
    def __init__(self, seed: int, index: Index, conditions: Conditions) -> None:
        self._seed = seed
        self._random = random = Random(seed)
        self._faults = frozenset(
            fault for fault in conditions.faults if conditions.certain or random.random() < FAULT_SHARE
        )
        self._rules = conditions.rules
        self._index = index
        self._steps = random.choice((90, 180, 360))
        self._start = random.randrange(0, 25)
        self._standby_lag = random.randrange(5, 40)
        early_insert = random.choice((0.05, 0.16, 0.35))
        self._extra_backfill = random.choice((0.0, 0.25, 1.0))
        self._postgres = Postgres(random, self._emit, early_insert)
        self._feeder = Feeder(
            random, self._postgres, index, self._rules, self._faults, conditions.xmin_is_the_lsn
        )
        self._now_s = 0
        self._standby: Server | None = None
        self._gap_ends: int | None = None

    def run(self) -> End:
        for step in range(self._steps):
            self._pass_time(self._random.choice((0, 1, 1, 2, 3)))
            self._scheduled(step)
            self._unlucky()
            self._something()
        at_rest = self._settle()
        snapshot = self._postgres.snapshot()
        table = {key: self._postgres.read(key, snapshot) for key in range(KEYS)}
        return End(self._seed, at_rest, table, self._index.reader_view())

    def _emit(self, event: Event) -> None:
        self._feeder.emit(event)

    def _pass_time(self, seconds: int) -> None:
        self._now_s += seconds
        self._feeder.now_s = self._now_s
        self._index.expire(self._now_s)

    # ---- what happens at a certain step

    def _scheduled(self, step: int) -> None:
        server, feeder = self._postgres.server, self._feeder
        barrier = Rule.START_BARRIER in self._rules
        if step == self._start:
            server.streaming = True
            server.last_commit_lsn = server.lsn
            feeder.start_backfill(barrier)
        if Fault.FAILOVER in self._faults and step == self._start + 30 and not self._committing():
            self._standby = self._postgres.standby()
        if self._standby and step == self._start + 30 + self._standby_lag:
            self._postgres.fail_over_to(self._standby)
            self._standby = None
            feeder.start_backfill(barrier=True)
        if Fault.GAP in self._faults and step == self._start + 40 and not self._standby:
            self._postgres.server.streaming = False
            self._gap_ends = step + 15
        if self._gap_ends == step:
            self._postgres.server.streaming = True
            feeder.start_backfill(barrier)
        for xid in self._committing():
            if self._now_s - (self._postgres.server.transactions[xid].committed_s or 0) > _INVISIBLE_S_MAX:
                self._postgres.become_visible(xid)

    def _unlucky(self) -> None:
        random, postgres = self._random, self._postgres
        if Fault.LOST_OFFSETS in self._faults and random.random() < 0.015:
            postgres.server.last_commit_lsn = None
        if Fault.ROLLBACK in self._faults and postgres.server.streaming and random.random() < 0.03:
            self._feeder.roll_back()
        if Fault.SNAPSHOT_EVENTS in self._faults and postgres.log and random.random() < 0.02:
            self._emit_snapshot_event()

    def _emit_snapshot_event(self) -> None:
        """Like the connector's: the position is that of the read, the txId that of the last change."""
        key = self._random.randrange(KEYS)
        server, last = self._postgres.server, self._postgres.log[-1]
        text = self._postgres.read(key, self._postgres.snapshot())
        if text is not None:
            self._emit(
                Event(
                    "r",
                    key,
                    text,
                    last.xid32,
                    server.last_commit_lsn,
                    server.lsn,
                    False,
                    last.born_s,
                    key % PARTITIONS,
                    last.era,
                )
            )

    # ---- what happens at any step

    def _something(self) -> None:
        """One of these, the first whose bound the dice is below and that is possible."""
        postgres, feeder, random = self._postgres, self._feeder, self._random
        dice = random.random()
        live = list(postgres.server.transactions)
        choices: tuple[tuple[float, object, Callable[[], None]], ...] = (
            (0.12, len(live) < _TRANSACTIONS_MAX, lambda: postgres.act(postgres.begin())),
            (0.34, live, lambda: postgres.act(random.choice(live))),
            (0.46, live, lambda: self._commit_or_abort(random.choice(live))),
            (0.56, True, self._make_one_visible),
            (0.74, True, self._read_on),
            (0.78, feeder.late, lambda: self._deliver_late()),
            (0.81, True, self._replay),
            (0.83, True, self._deliver_one_again),
            (0.845, Fault.REEMIT in self._faults and postgres.log, self._emit_again),
            (0.845 + 0.045 * self._extra_backfill, True, self._read_some),
            (0.93, True, feeder.go_on_with_backfills),
            (0.97, feeder.reads, lambda: feeder.apply_read(twice=random.random() < 0.3)),
            (0.973, feeder.dead, feeder.retry_dead),
            (0.98, feeder.plans, feeder.finish_plan),
            (0.994, Fault.XID_JUMP in self._faults and not live, lambda: postgres.use_up_xids(_XIDS_USED_UP)),
            (1.0, Fault.LONG_PAUSE in self._faults and dice > 0.994, self._pause),
        )
        for bound, possible, act in choices:
            if dice < bound and possible:
                act()
                return

    def _committing(self) -> list[int]:
        transactions = self._postgres.server.transactions
        return [xid for xid, transaction in transactions.items() if transaction.committed_s is not None]

    def _commit_or_abort(self, xid: int) -> None:
        if self._random.random() < 0.08 and xid not in self._committing():
            self._postgres.abort(xid)
        else:
            self._postgres.write_commit_record(xid, self._now_s)

    def _make_one_visible(self) -> None:
        if committing := self._committing():
            self._postgres.become_visible(self._random.choice(committing))

    def _read_on(self) -> None:
        feeder = self._feeder
        partition = self._random.randrange(PARTITIONS)
        offset = feeder.next_read[partition]
        if offset == len(feeder.partitions[partition]):
            return
        feeder.next_read[partition] += 1
        if self._random.random() >= 0.2:
            feeder.consume(partition, offset)
        elif Fault.DEAD_LETTER in self._faults and self._random.random() < 0.3:
            feeder.dead.append(feeder.partitions[partition][offset])
            feeder.acknowledge(partition, offset)
        else:
            feeder.late.append((partition, offset))

    def _deliver_late(self) -> None:
        late = self._feeder.late
        self._feeder.consume(*late.pop(self._random.randrange(len(late))))

    def _replay(self) -> None:
        partition = self._random.randrange(PARTITIONS)
        self._feeder.next_read[partition] = self._random.randrange(0, self._feeder.next_read[partition] + 1)

    def _deliver_one_again(self) -> None:
        partition = self._random.randrange(PARTITIONS)
        if events := self._feeder.partitions[partition]:
            offset = self._random.randrange(len(events))
            if offset < self._feeder.next_read[partition]:
                self._feeder.deliver(events[offset])

    def _emit_again(self) -> None:
        log = self._postgres.log
        for event in log[self._random.randrange(len(log)) :]:
            self._emit(event)

    def _read_some(self) -> None:
        keys = self._random.sample(range(KEYS), self._random.randrange(1, KEYS + 1))
        self._feeder.read_chunk(keys, absent=self._random.random() < 0.4)

    def _pause(self) -> None:
        for xid in self._committing():
            self._postgres.become_visible(xid)
        self._pass_time(MARKER_TTL_S // 2 + self._random.randrange(MARKER_TTL_S))

    # ---- the end

    def _settle(self) -> bool:
        """Every transaction ends and everything is delivered, in any order; False when it has no end."""
        self._end_transactions()
        # What is still committing stays invisible while some of the rest is delivered.
        for _ in range(2):
            while self._deliver_something():
                pass
            for xid in list(self._postgres.server.transactions):
                self._postgres.become_visible(xid)
        return any(not self._deliver_rest() for _ in range(_SETTLE_STEPS_MAX))

    def _end_transactions(self) -> None:
        postgres = self._postgres
        for xid in list(postgres.server.transactions):
            for _ in range(3):
                if xid in postgres.server.transactions and postgres.server.transactions[xid].early:
                    postgres.check_unique(xid)
            if xid in postgres.server.transactions:
                if postgres.server.transactions[xid].early:
                    postgres.abort(xid)
                else:
                    postgres.write_commit_record(xid, self._now_s)
            if self._random.random() < 0.5 and xid in postgres.server.transactions:
                postgres.become_visible(xid)

    def _deliver_something(self) -> bool:
        feeder, random = self._feeder, self._random
        work: list[Callable[[], None]] = [
            self._reader(partition)
            for partition in range(PARTITIONS)
            if feeder.next_read[partition] < len(feeder.partitions[partition])
        ]
        # Now and then one kind of work is held up: what waits for a commit would be tried for ever.
        if feeder.late and random.random() < 0.9:
            work.append(self._deliver_late)
        if feeder.reads:
            work.append(lambda: feeder.apply_read(twice=False))
        if feeder.plans:
            work.append(feeder.finish_plan)
        if feeder.dead and random.random() < 0.9:
            work.append(feeder.retry_dead)
        if feeder.backfills and random.random() < 0.9:
            work.append(feeder.go_on_with_backfills)
        if work:
            random.choice(work)()
        return bool(work)

    def _reader(self, partition: int) -> Callable[[], None]:
        def read() -> None:
            self._feeder.consume(partition, self._feeder.next_read[partition])
            self._feeder.next_read[partition] += 1

        return read

    def _deliver_rest(self) -> bool:
        feeder = self._feeder
        if not (feeder.late or feeder.reads or feeder.plans or feeder.backfills or feeder.dead):
            return False
        if feeder.backfills:
            feeder.go_on_with_backfills()
        if feeder.dead:
            feeder.retry_dead()
        elif feeder.late:
            feeder.consume(*feeder.late.pop())
        elif feeder.reads:
            feeder.apply_read(twice=False)
        elif feeder.plans:
            feeder.finish_plan()
        return True

"""livevec's part in a history: it reads the log and the table, and writes to the index under the version rule."""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from random import Random

from daemon.core.version import LogVersion, SnapshotVersion, Version, widen_xid
from daemon.index.writer import Result
from tests.support.ordering.faults import Fault, Rule
from tests.support.ordering.index import MARKER_TTL_S, Index
from tests.support.ordering.postgres import KEYS, PARTITIONS, Event, Postgres, Snapshot

_BEYOND_EVERY_LSN = 1 << 64


@dataclass(frozen=True)
class Write:
    """`text` is None for a delete; `born_s` is the time of the commit or of the read."""

    version: Version
    text: str | None
    born_s: float


@dataclass(eq=False)
class Backfill:
    """A full backfill under way.

    Attributes:
        barrier_xid: it reads nothing before all transactions below this one have ended.
        swept: whether it ends with a sweep.
        first: the snapshot taken before the first chunk, which sweeps at the end.
    """

    era: int
    barrier_xid: int
    swept: bool
    keys: list[int] = field(default_factory=lambda: list(range(KEYS)))
    first: SnapshotVersion | None = None


class Feeder:
    """Everything that is known but not yet written waits in one of its lists, in which any may be the next.

    Attributes:
        partitions: the topic.
        next_read: the consumer's position, by partition.
        positions: how far the log is applied, kept beside the data, by partition.
        late: (partition, offset) of changes that are read and not applied yet.
        reads: rows of chunks, with the backfill they belong to.
        plans: metadata-only writes that are planned and not made yet.
        dead: dead-lettered changes.
    """

    def __init__(
        self,
        random: Random,
        postgres: Postgres,
        index: Index,
        rules: Set[Rule],
        faults: Set[Fault],
        xmin_is_the_lsn: bool = False,
    ) -> None:
        self._random = random
        self._postgres = postgres
        self._index = index
        self._rules = rules
        self._faults = faults
        self._xmin_is_the_lsn = xmin_is_the_lsn
        self.now_s = 0
        self.partitions: list[list[Event]] = [[] for _ in range(PARTITIONS)]
        self.next_read = [0] * PARTITIONS
        self.positions = [0] * PARTITIONS
        self.late: list[tuple[int, int]] = []
        self.reads: list[tuple[int, Write, Backfill | None]] = []
        self.plans: list[tuple[int, Write]] = []
        self.dead: list[Event] = []
        self.backfills: list[Backfill] = []
        self._acknowledged: list[set[int]] = [set() for _ in range(PARTITIONS)]
        self._go_back: tuple[Callable[[], None], list[int]] | None = None

    # ---- the log

    def emit(self, event: Event) -> None:
        self.partitions[event.partition].append(event)

    def consume(self, partition: int, offset: int) -> None:
        if self.deliver(self.partitions[partition][offset]):
            self.acknowledge(partition, offset)
        else:
            self.late.append((partition, offset))

    def acknowledge(self, partition: int, offset: int) -> None:
        self._acknowledged[partition].add(offset)
        while self.positions[partition] in self._acknowledged[partition]:
            self.positions[partition] += 1

    def deliver(self, event: Event) -> bool:
        """Applies a change; False when it has to come again later."""
        if event.key is None:
            return self._deliver_truncate(event)
        version = self._version(event)
        if event.op == "r" and Rule.R_IS_A_HINT in self._rules:
            # Its txId is not the row's, so there is nothing to wait for.
            return self._apply(event.key, self._read_now(event.key))
        if event.commit_lsn is None and Rule.NULL_IS_A_HINT in self._rules:
            reread = self._reread(event.key, version)
            return reread is not None and self._apply(event.key, reread)
        write = Write(version, event.text, event.born_s)
        if event.toast and Rule.TOAST_SNAPSHOT in self._rules:
            reread = self._reread(event.key, version)
            if reread is None:
                return False
            write = reread
        elif event.toast:
            write = Write(version, self._read_now(event.key).text, event.born_s)
            if write.text is None:
                return True
        return self._write(event.key, write)

    def retry_dead(self) -> None:
        event = self.dead.pop(self._random.randrange(len(self.dead)))
        if not self.deliver(event):
            self.dead.append(event)

    def _deliver_truncate(self, event: Event) -> bool:
        if event.commit_lsn is None and Rule.NULL_IS_A_HINT in self._rules:
            if event.era == self._postgres.server.era:
                self.start_backfill(barrier=True)
            return True
        return self._sweep(self._version(event))

    def _version(self, event: Event) -> LogVersion:
        near_lsn = event.lsn if Rule.WIDE_XID in self._rules else _BEYOND_EVERY_LSN
        xid = widen_xid(event.xid32, event.era, near_lsn, self._postgres.anchors)
        return LogVersion(event.era, event.commit_lsn or 0, event.lsn, xid)

    # ---- the table

    def read_chunk(self, keys: Iterable[int], absent: bool, backfill: Backfill | None = None) -> None:
        """Rows as of one snapshot; with `absent` also the absence of those that are stored."""
        snapshot, version = self._snapshot()
        for key in keys:
            text = self._postgres.read(key, snapshot)
            if text is not None or (absent and self._index.stored(key) is not None):
                self.reads.append((key, Write(version, text, self.now_s), backfill))

    def apply_read(self, twice: bool) -> None:
        """Writes a row of a chunk; with `twice` it will be written again."""
        at = self._random.randrange(len(self.reads))
        key, write, backfill = self.reads[at] if twice else self.reads.pop(at)
        if not self._write(key, write) and not twice:
            self.reads.append((key, write, backfill))

    def start_backfill(self, barrier: bool) -> None:
        barrier_xid = self._postgres.server.next_xid if barrier else 0
        era = self._postgres.server.era
        self.backfills.append(Backfill(era, barrier_xid, Rule.ORPHAN_SWEEP in self._rules))

    def go_on_with_backfills(self) -> None:
        for backfill in list(self.backfills):
            if backfill.era != self._postgres.server.era:
                # Another history: a newer backfill takes its place.
                self.backfills.remove(backfill)
            elif all(xid >= backfill.barrier_xid for xid in self._postgres.server.transactions):
                self._go_on(backfill)

    def _go_on(self, backfill: Backfill) -> None:
        if backfill.first is None:
            _, backfill.first = self._snapshot()
        keys = backfill.keys
        if keys:
            self._random.shuffle(keys)
            count = self._random.randrange(1, KEYS + 1)
            self.read_chunk(keys[:count], False, backfill)
            del keys[:count]
            return
        if self.plans or any(reading is backfill for _, _, reading in self.reads):
            return
        if not backfill.swept or self._sweep(backfill.first):
            self.backfills.remove(backfill)

    def _snapshot(self) -> tuple[Snapshot, SnapshotVersion]:
        snapshot, server = self._postgres.snapshot(), self._postgres.server
        xip = tuple(sorted(snapshot.xip)) if Rule.PRIMARY_ONLY in self._rules else ()
        xmin = server.lsn if self._xmin_is_the_lsn else min(xip, default=snapshot.xmax)
        return snapshot, SnapshotVersion(server.era, xmin, snapshot.xmax, xip)

    def _read_now(self, key: int) -> Write:
        snapshot, version = self._snapshot()
        return Write(version, self._postgres.read(key, snapshot), self.now_s)

    def _reread(self, key: int, version: Version) -> Write | None:
        """The row as it is now; None while the change that asked for it is not visible yet."""
        write = self._read_now(key)
        if isinstance(version, LogVersion) and version.era == write.version.era:
            assert isinstance(write.version, SnapshotVersion)
            return write if write.version.sees(version.xid) else None
        return write

    # ---- the index

    def _write(self, key: int, write: Write, may_plan: bool = True) -> bool:
        old = self.now_s - write.born_s > MARKER_TTL_S // 2
        if Rule.TTL_GUARD in self._rules and old and write.text is not None:
            reread = self._reread(key, write.version)
            if reread is None:
                return False
            write = reread
        stored = self._index.stored(key)
        if write.text is None or stored is None or stored.text != write.text or not may_plan:
            return self._apply(key, write)
        if self._random.random() < 0.6 and Fault.PLAN_RACE in self._faults:
            self.plans.append((key, write))
            return True
        return self._apply_metadata(key, write)

    def finish_plan(self) -> None:
        key, write = self.plans.pop(self._random.randrange(len(self.plans)))
        if not self._apply_metadata(key, write):
            # Refused: it is embedded after all.
            self._write(key, write, may_plan=False)

    def _apply(self, key: int, write: Write) -> bool:
        if write.text is None:
            self._index.delete(key, write.version, self.now_s + MARKER_TTL_S)
        else:
            self._index.put(key, write.version, write.text)
        return True

    def _apply_metadata(self, key: int, write: Write) -> bool:
        assert write.text is not None
        return self._index.touch(key, write.version, write.text) is not Result.CONFLICT

    def _sweep(self, version: Version) -> bool:
        """Leaves a floor in every bucket, then removes what it beats; False when torn."""
        keys = list(range(KEYS))
        steps = [(self._index.raise_floor, key) for key in keys] + [(self._index.sweep, key) for key in keys]
        torn = Fault.TORN_SWEEP in self._faults and self._random.random() < 0.4
        if torn:
            del steps[self._random.randrange(len(steps)) :]
        for step, key in steps:
            step(key, version)
        return not torn

    def roll_back(self) -> None:
        """Redis goes back to where it was the last time this was called; the daemon seeks back with it."""
        if self._go_back is None:
            self._go_back = self._index.checkpoint(), list(self.positions)
            return
        (restore, self.positions), self._go_back = self._go_back, None
        restore()
        self._index.expire(self.now_s)
        for partition, position in enumerate(self.positions):
            acknowledged = self._acknowledged[partition]
            self._acknowledged[partition] = {offset for offset in acknowledged if offset < position}
            self.next_read[partition] = position
        self.late = [(partition, at) for partition, at in self.late if at < self.positions[partition]]
        self.plans = []
        if Rule.ROLLBACK_RECONCILE in self._rules:
            self.start_backfill(barrier=False)

"""A model of PostgreSQL as far as order goes (seen on 18.6).

A transaction gets an xid at its first write and holds the locks of its keys until it is visible. A commit has
two moments: the commit record, from which the log carries its rows, and later its visibility to new snapshots.
An INSERT may write its heap record before its unique check waits for another transaction (COPY, or a second
unique index), so the LSNs of one key's changes need not follow the order of the commits. The log carries the
events in commit order with xids modulo 2^32 and, beside each, the end of the commit before.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from daemon.core.version import Anchor

KEYS = 4
PARTITIONS = 2
XID_MODULUS = 1 << 32

# Near the wrap of 32 bits, and such that xids get another digit after some jumps.
FIRST_XID = XID_MODULUS - 25
# Not to be told apart as doubles, and about to get another digit: LSNs are compared as decimal strings.
FIRST_LSN = 10**18 - 2000


class Snapshot(NamedTuple):
    xmax: int
    xip: frozenset[int]

    def sees(self, xid: int) -> bool:
        return xid < self.xmax and xid not in self.xip


@dataclass(frozen=True)
class Event:
    """A change event as the log carries it; `key` is None for a TRUNCATE, `commit_lsn` when it is not known."""

    op: str
    key: int | None
    text: str | None
    xid32: int
    commit_lsn: int | None
    lsn: int
    toast: bool
    born_s: float
    partition: int
    era: int


class Change(NamedTuple):
    lsn: int
    op: str
    key: int | None
    text: str | None
    toast: bool


@dataclass
class Transaction:
    changes: list[Change] = field(default_factory=list)
    # (key, lsn, text) of an INSERT whose heap record is written and whose unique check waits.
    early: list[tuple[int, int, str]] = field(default_factory=list)
    committed_s: float | None = None


@dataclass
class Server:
    """What a standby has too, and what is lost when one takes over that lags."""

    next_xid: int = FIRST_XID
    newest_ended_xid: int = FIRST_XID - 1
    lsn: int = FIRST_LSN
    last_commit_lsn: int | None = 0
    # The texts of a key with the xids that wrote them, in the order of their effect; None is a delete.
    chain: dict[int, list[tuple[int, str | None]]] = field(
        default_factory=lambda: {key: [] for key in range(KEYS)}
    )
    transactions: dict[int, Transaction] = field(default_factory=dict)
    row_locks: dict[int, int] = field(default_factory=dict)
    table_lock: int | None = None
    streaming: bool = False
    era: int = 0


class Postgres:
    """The model.

    Args:
        random: makes every choice.
        emit: gets the events as the log carries them.
        early_insert: how often an INSERT writes its heap record before its unique check.
        new_text: what a row is given; None: one of three texts.
    """

    def __init__(
        self,
        random: Random,
        emit: Callable[[Event], None],
        early_insert: float,
        new_text: Callable[[], str] | None = None,
    ) -> None:
        self._random = random
        self._new_text = new_text or (lambda: random.choice("ABC"))
        self._emit = emit
        self._early_insert = early_insert
        self.server = Server()
        self.log: list[Event] = []
        self.anchors: list[Anchor] = []
        self.note_anchor()

    # ---- what a reader sees

    def snapshot(self) -> Snapshot:
        xmax = self.server.newest_ended_xid + 1
        return Snapshot(xmax, frozenset(xid for xid in self.server.transactions if xid < xmax))

    def read(self, key: int, snapshot: Snapshot) -> str | None:
        text = None
        for xid, written in self.server.chain.get(key, ()):
            if snapshot.sees(xid):
                text = written
        return text

    def note_anchor(self) -> None:
        self.anchors.append(Anchor(self.server.era, self.server.lsn, self.server.next_xid))

    # ---- what writers do

    def begin(self) -> int:
        xid = self.server.next_xid
        self.server.next_xid += self._random.choice((1, 1, 1, 2))
        self.server.transactions[xid] = Transaction()
        return xid

    def act(self, xid: int) -> None:
        """One statement of a transaction; none when it would have to wait."""
        transaction = self.server.transactions[xid]
        if transaction.committed_s is not None:
            return
        if transaction.early:
            self.check_unique(xid)
            return
        key, text = self._random.randrange(KEYS), self._new_text()
        old = self._newest(key)
        dice = self._random.random()
        if dice < 0.06 and self._table_is_free(xid):
            self.truncate(xid)
        elif dice < 0.06 + self._early_insert and self._may_insert_early(xid, key):
            transaction.early.append((key, self.tick(), text))
        elif not self._is_free(xid, key):
            return
        elif old is None:
            self.put(xid, key, text, self.tick(), "c")
        elif dice < 0.5:
            self.put(xid, key, None, self.tick(), "d")
            if self._random.random() < 0.4:
                self.put(xid, key, text, self.tick(), "c")
        elif dice < 0.62:
            self._change_key(xid, key, old)
        else:
            toast = self._random.random() < 0.25
            self.put(xid, key, old if toast else text, self.tick(), "u", toast)

    def check_unique(self, xid: int) -> None:
        """The unique check of an early INSERT, once its key is free."""
        transaction = self.server.transactions[xid]
        key, lsn, text = transaction.early[0]
        if not self._is_free(xid, key):
            return
        if self._newest(key) is not None:
            self.abort(xid)
            return
        transaction.early.pop(0)
        self.put(xid, key, text, lsn, "c")

    def abort(self, xid: int) -> None:
        for key, chain in self.server.chain.items():
            self.server.chain[key] = [written for written in chain if written[0] != xid]
        self.become_visible(xid)

    def write_commit_record(self, xid: int, now_s: float) -> None:
        server, transaction = self.server, self.server.transactions[xid]
        if transaction.committed_s is not None or transaction.early:
            return
        transaction.committed_s = now_s
        if server.streaming:
            for change in sorted(transaction.changes, key=lambda change: change.lsn):
                event = self._event(change, xid, now_s)
                self.log.append(event)
                self._emit(event)
        end_lsn = self.tick()
        if server.streaming and transaction.changes:
            server.last_commit_lsn = end_lsn

    def become_visible(self, xid: int) -> None:
        """The end of a transaction, committed or not."""
        server = self.server
        server.transactions.pop(xid)
        server.newest_ended_xid = max(server.newest_ended_xid, xid)
        server.row_locks = {key: owner for key, owner in server.row_locks.items() if owner != xid}
        if server.table_lock == xid:
            server.table_lock = None

    # ---- what happens to the server

    def start_streaming(self) -> None:
        self.server.streaming = True

    def standby(self) -> Server:
        return deepcopy(self.server)

    def fail_over_to(self, standby: Server) -> None:
        """Goes on from what the standby had; what ran there is aborted, and a new era begins."""
        self.server = standby
        for xid in list(standby.transactions):
            self.abort(xid)
        standby.era += 1
        self.note_anchor()
        standby.streaming = True

    def use_up_xids(self, count: int) -> None:
        self.note_anchor()
        self.server.next_xid += count
        self.server.newest_ended_xid = self.server.next_xid - 1
        self.note_anchor()

    # ---- parts

    def tick(self) -> int:
        self.server.lsn += self._random.choice((8, 16, 40))
        return self.server.lsn

    def _newest(self, key: int) -> str | None:
        chain = self.server.chain[key]
        return chain[-1][1] if chain else None

    def _is_free(self, xid: int, key: int) -> bool:
        return self.server.row_locks.get(key, xid) == xid and self.server.table_lock in (None, xid)

    def _table_is_free(self, xid: int) -> bool:
        others = (other for owner, other in self.server.transactions.items() if owner != xid)
        return self.server.table_lock in (None, xid) and not any(o.changes or o.early for o in others)

    def _may_insert_early(self, xid: int, key: int) -> bool:
        server = self.server
        return (
            server.table_lock is None and server.row_locks.get(key) != xid and self._newest(key) is not None
        )

    def put(self, xid: int, key: int, text: str | None, lsn: int, op: str, toast: bool = False) -> None:
        self.server.row_locks[key] = xid
        self.server.chain.setdefault(key, []).append((xid, text))
        self.server.transactions[xid].changes.append(Change(lsn, op, key, text, toast))

    def truncate(self, xid: int) -> None:
        self.server.table_lock = xid
        lsn = self.tick()
        for chain in self.server.chain.values():
            chain.append((xid, None))
        self.server.transactions[xid].changes.append(Change(lsn, "t", None, None, False))

    def _change_key(self, xid: int, key: int, text: str) -> None:
        """A primary-key change: a delete and an insert with one LSN and two keys."""
        other = self._random.randrange(KEYS)
        if other != key and self._newest(other) is None and self._is_free(xid, other):
            lsn = self.tick()
            self.put(xid, key, None, lsn, "d")
            self.put(xid, other, text, lsn, "c", self._random.random() < 0.3)

    def _event(self, change: Change, xid: int, now_s: float) -> Event:
        partition = self._random.randrange(PARTITIONS) if change.key is None else change.key % PARTITIONS
        return Event(
            change.op,
            change.key,
            change.text,
            xid % XID_MODULUS,
            self.server.last_commit_lsn,
            change.lsn,
            change.toast,
            now_s,
            partition,
            self.server.era,
        )

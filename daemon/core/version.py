"""Who wins: the version of a write, and whether it replaces what is stored.

A key has one history: the order in which the transactions that touched it committed. A write knows its place
in it in one of two ways: from the log (`LogVersion`) or from a snapshot that read the row (`SnapshotVersion`).
The same rule runs inside Redis (`daemon/index/functions.lua`, `replaces`); one property test drives both.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

_XID_MODULUS = 1 << 32

_NUMBER = "(?:0|[1-9][0-9]*)"
_LOG = re.compile(f"L:({_NUMBER}):({_NUMBER}):({_NUMBER}):({_NUMBER})")
_SNAPSHOT = re.compile(f"S:({_NUMBER}):({_NUMBER}):({_NUMBER}):((?:{_NUMBER}(?:,{_NUMBER})*)?)")


@dataclass(frozen=True, slots=True)
class LogVersion:
    """Place of a change in the log.

    Attributes:
        era: raised when the source lost history; a newer era always wins.
        commit_lsn: end of the commit before this change's (Debezium's `source.sequence[0]`).
        lsn: of the change itself (`source.lsn`). Alone it is not the order: COPY, or an INSERT with a unique
            index checked before the key's, logs its row before it waits for the delete of the same key.
        xid: top-level transaction id in 64 bits.
    """

    era: int
    commit_lsn: int
    lsn: int
    xid: int

    def encode(self) -> str:
        return f"L:{self.era}:{self.commit_lsn}:{self.lsn}:{self.xid}"


@dataclass(frozen=True, slots=True)
class SnapshotVersion:
    """A row, or its absence, as seen by `pg_current_snapshot()`: xids below xmax and not in xip are visible."""

    era: int
    xmin: int
    xmax: int
    xip: tuple[int, ...] = ()

    def encode(self) -> str:
        return f"S:{self.era}:{self.xmin}:{self.xmax}:{','.join(map(str, self.xip))}"

    def sees(self, xid: int) -> bool:
        return xid < self.xmax and xid not in self.xip


Version = LogVersion | SnapshotVersion


def decode(text: str) -> Version:
    """The inverse of `encode`.

    Raises:
        ValueError: not the text of a version.
    """
    if match := _LOG.fullmatch(text):
        return LogVersion(*map(int, match.groups()))
    if match := _SNAPSHOT.fullmatch(text):
        era, xmin, xmax, xip = match.groups()
        return SnapshotVersion(int(era), int(xmin), int(xmax), tuple(map(int, xip.split(","))) if xip else ())
    raise ValueError(f"not a version: {text!r}")


def replaces(write: Version, stored: Version | None) -> bool:
    """Whether `write` may take the place of `stored` (a row, a delete marker or a floor)."""
    if stored is None:
        return True
    if write.era != stored.era:
        return write.era > stored.era
    match write, stored:
        case LogVersion(), LogVersion():
            return (write.commit_lsn, write.lsn) > (stored.commit_lsn, stored.lsn)
        case LogVersion(), SnapshotVersion():
            return not stored.sees(write.xid)
        case SnapshotVersion(), LogVersion():
            return write.sees(stored.xid)
        case SnapshotVersion(), SnapshotVersion():
            return snapshot_order(write) >= snapshot_order(stored)
    raise AssertionError


def sweeps(floor: Version, stored: Version) -> bool:
    """Whether a sweep at `floor` removes `stored`: strictly newer, so that a row read at that snapshot stays."""
    if isinstance(floor, SnapshotVersion) and isinstance(stored, SnapshotVersion) and floor.era == stored.era:
        return snapshot_order(floor) > snapshot_order(stored)
    return replaces(floor, stored)


def snapshot_order(version: SnapshotVersion) -> tuple[int, int]:
    """Snapshots of one primary are nested sets: the later one has completed more."""
    return version.xmax, -len(version.xip)


@dataclass(frozen=True, slots=True, order=True)
class Anchor:
    """A moment at which both the WAL position and the next 64-bit xid were known."""

    era: int
    lsn: int
    xid: int


def widen_xid(xid: int, era: int, lsn: int, anchors: Sequence[Anchor]) -> int:
    """A 32-bit xid in 64 bits: the value nearest to the last anchor at or before `lsn` in that era.

    Args:
        xid: as Debezium sends it, modulo 2^32.
        era: of the change.
        lsn: of the change.
        anchors: sorted; at least one of that era.

    Raises:
        LookupError: no anchor of that era.
    """
    first = bisect_right(anchors, Anchor(era, -1, -1))
    position = bisect_right(anchors, Anchor(era, lsn, 1 << 64)) - 1
    position = max(position, first)
    if position >= len(anchors) or anchors[position].era != era:
        raise LookupError(f"no xid anchor of era {era}")
    near = anchors[position].xid
    distance = (xid - near) % _XID_MODULUS
    return near + (distance - _XID_MODULUS if distance >= _XID_MODULUS // 2 else distance)

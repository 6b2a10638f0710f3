"""What may go wrong in a history, and the rules that keep the index right nevertheless.

The version rule itself is in the index (`daemon/core/version.py`, `daemon/index/functions.lua`); these are the
rules of those who read and write. `NOT_KEPT` is what a history does in place of a rule that is off.
"""

from enum import StrEnum


class Fault(StrEnum):
    """Each happens in four of ten histories that allow it, or in each where it is certain."""

    REEMIT = "the connector emits an old suffix of the log again"
    SNAPSHOT_EVENTS = "the connector emits `r` events"
    ROLLBACK = "Redis goes back to an earlier state"
    GAP = "the log lacks some changes, which is known afterwards"
    XID_JUMP = "2^31 transaction ids are used up while no transaction runs"
    LONG_PAUSE = "time passes, more than half the life of a delete marker"
    PLAN_RACE = "a metadata-only write is planned now and made later"
    DEAD_LETTER = "a change is acknowledged now and retried at any time later"
    FAILOVER = "a standby that lacks the last changes becomes the primary"
    LOST_OFFSETS = "the connector loses its offsets, so that a change has no place in the order of commits"
    TORN_SWEEP = "a sweep stops half-way and is begun again later"
    REBALANCE = "partitions are revoked or lost, and come back"
    KILL = "the daemon or the worker is killed, and started again"
    AWAY = "a call is refused, its answer is lost, or it takes long"
    RETENTION = "records are gone from the topic before they were read"


EVERY_FAULT = tuple(Fault)
OF_THE_SHELL = frozenset({Fault.REBALANCE, Fault.KILL, Fault.AWAY, Fault.RETENTION})
"""These happen only where there is a shell."""
OF_THE_FUNCTIONS = tuple(fault for fault in EVERY_FAULT if fault not in OF_THE_SHELL)


class Rule(StrEnum):
    TOAST_SNAPSHOT = (
        "a row re-read for an unchanged TOAST column has its own snapshot, and waits for its change"
    )
    R_IS_A_HINT = "an `r` event is re-read"
    NULL_IS_A_HINT = "a change without the commit before it is re-read"
    TTL_GUARD = "a write older than half the life of a delete marker is re-read"
    ROLLBACK_RECONCILE = "a Redis that went back starts a reconcile besides the seek"
    START_BARRIER = "the first full backfill waits until all transactions from before the log have ended"
    WIDE_XID = "a 32-bit xid is widened beside the anchor at its change's place in the log"
    PRIMARY_ONLY = "snapshots are those of a primary"
    ORPHAN_SWEEP = "a reconcile ends with a sweep of all that is older than its first snapshot"


EVERY_RULE = frozenset(Rule)

NOT_KEPT = {
    Rule.TOAST_SNAPSHOT: "the re-read value is stored under the version of the change",
    Rule.R_IS_A_HINT: "it counts as a change at (lsn, txId)",
    Rule.NULL_IS_A_HINT: "it counts as 0",
    Rule.TTL_GUARD: "it is written as it is",
    Rule.ROLLBACK_RECONCILE: "it only seeks",
    Rule.START_BARRIER: "it reads at once",
    Rule.WIDE_XID: "it is widened beside the newest anchor",
    Rule.PRIMARY_ONLY: "those of a standby, on which pg_current_snapshot() never lists a running transaction",
    Rule.ORPHAN_SWEEP: "it only writes rows",
}

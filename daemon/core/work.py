"""What is on its way into the index: one document to bring up to date, and its dead letter where it cannot be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.core.change import Change, Operation, Outcome, Row
from daemon.core.document import Document
from daemon.core.version import Version


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a dead letter tells of a row or a record that was refused.

    Attributes:
        id: of the document; empty where the record could not be decoded.
        operation: that was asked for.
        version: of the refused change; None where it is not known, or the row was read from its table.
        committed_at_s: commit time, or the time at which the row was read; seconds since the epoch.
        record: the raw record; None for a row that was read from its table; opaque here.
    """

    id: str
    operation: Operation
    version: Version | None
    committed_at_s: float
    record: object = None


@dataclass(slots=True, eq=False)
class Work:
    """One document to bring up to date with a row, or with the absence of one.

    Attributes:
        id: of the document; empty for a TRUNCATE.
        version: that the write carries; None while the row is yet to be read.
        row: None: there is none, or it is yet to be read.
        done: called once, when the effect is acknowledged, with the outcome.
        tokens: of the row's text, estimated.
        change: the change of the log that asked for it; None for a row that a backfill or a repair has read.
        record: the change's raw record, for a dead letter; opaque here.
        received_at_s: when the record was received, by the wall clock.
        read_at_s: when the row was read, where there is no change.
        rewrite: write the document whole, whatever is stored.
        reused: its vectors are another index version's.
        unchanged: its metadata is stored already, too.
        document: what the row renders to.
        chunks: of the document's text, as they are embedded.
    """

    id: str
    version: Version | None
    row: Row | None
    done: Callable[[Outcome], None]
    tokens: int = 0
    change: Change | None = None
    record: object = None
    received_at_s: float = 0.0
    read_at_s: float = 0.0
    rewrite: bool = False
    reused: bool = False
    unchanged: bool = False
    document: Document | None = None
    chunks: Sequence[str] = ()

    @property
    def is_live(self) -> bool:
        """Whether it brings news, whose freshness counts: a change of the log that is not a row of a snapshot."""
        change = self.change
        return change is not None and (
            change.operation is not Operation.REREAD or change.wait_xid is not None
        )

    def refusal(self) -> Refusal:
        """What its dead letter would tell."""
        change = self.change
        if change is None:
            return Refusal(self.id, Operation.REREAD, None, self.read_at_s)
        return Refusal(self.id, change.operation, change.version, change.committed_at_s, self.record)

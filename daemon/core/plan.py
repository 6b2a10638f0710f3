"""What is to be done about a change or a row, and what it came to: decisions alone, without any I/O."""

from dataclasses import dataclass
from enum import Enum

from daemon.core.change import Change, Operation, Outcome
from daemon.core.version import SnapshotVersion, Version, replaces
from daemon.core.work import Work


@dataclass(frozen=True, slots=True)
class Stored:
    """Bookkeeping of one document.

    Attributes:
        version: of the write that made it.
        content_hash: None for a delete marker.
        metadata_hash: None for a delete marker.
    """

    version: Version
    content_hash: str | None
    metadata_hash: str | None


class Step(Enum):
    """What brings a document up to date."""

    NOTHING = "nothing"
    """What is stored is newer."""
    DELETE = "delete"
    TOUCH = "touch"
    """The text is stored already: only the version and the metadata move on."""
    PUT_BLANK = "put_blank"
    """The text is blank: the document is written without chunks."""
    EMBED = "embed"


def is_hint(change: Change, now_s: float, marker_ttl_s: float, rereadable: bool) -> bool:
    """Return whether the row must be read from the source instead of being taken from the change.

    A write that is older than half of a delete marker's life is a hint: the marker that would refuse it may have
    expired.

    Args:
        rereadable: whether the source can be asked for a row.
    """
    if change.operation is Operation.REREAD:
        return True
    is_old = now_s - change.committed_at_s > marker_ttl_s / 2
    return is_old and rereadable and change.operation is Operation.UPSERT


def is_visible(change: Change, snapshot: SnapshotVersion) -> bool:
    """Return whether a row that was read at this snapshot may stand for the change.

    A commit is in the log before it is visible: until then the row is the one from before the change. Another era
    is another history, in which the transaction id means nothing.
    """
    return change.wait_xid is None or change.era != snapshot.era or snapshot.sees(change.wait_xid)


def next_step(work: Work, stored: Stored | None) -> Step:
    """Return what brings the document up to date, given what is stored of it (None: nothing)."""
    document = work.document
    assert work.version is not None, "the row has been read by now"
    if stored is not None and not replaces(work.version, stored.version):
        return Step.NOTHING
    if document is None:
        return Step.DELETE
    if stored is not None and stored.content_hash == document.content_hash and not work.rewrite:
        return Step.TOUCH
    return Step.EMBED if work.chunks else Step.PUT_BLANK


def outcome(work: Work, step: Step) -> Outcome:
    """Return what a step that was applied came to."""
    if step is Step.DELETE:
        return Outcome.DELETED
    if step is Step.TOUCH:
        return Outcome.UNCHANGED if work.unchanged else Outcome.METADATA
    return Outcome.REUSED if work.reused else Outcome.EMBEDDED

"""What trying rows and trying events have in common."""

from collections.abc import Sequence

from daemon.core.version import Version, decode, replaces
from daemon.errors import RejectRow
from daemon.index.writer import IndexWriter
from daemon.patience import Patience
from workflows.retry.contract import Attempt, Complaint, Letter, Tried, TryOutcome

_MESSAGE_MAX = 300


def version_of(letter: Letter) -> Version | None:
    """The version of the refused change; None where the letter does not tell it."""
    try:
        return decode(letter.version)
    except ValueError:
        return None


async def superseded(patience: Patience, writer: IndexWriter, attempts: Sequence[Attempt]) -> set[str]:
    """Names of those whose document is stored, or marked as deleted, by something newer."""
    known = [(a.letter, version) for a in attempts if a.letter.document and (version := version_of(a.letter))]
    if not known:
        return set()
    stored = await patience.call("redis", lambda: writer.lookup([letter.document for letter, _ in known]))
    return {
        letter.name
        for (letter, version), before in zip(known, stored, strict=True)
        if before is not None and not replaces(version, before.version)
    }


def refused(attempt: Attempt, error: RejectRow, outcome: TryOutcome = TryOutcome.REFUSED) -> Tried:
    """The result of an attempt that ended so; a look is none."""
    if attempt.look:
        return Tried(attempt.letter, TryOutcome.WAITING)
    return Tried(attempt.letter, outcome, complaint(error.reason, str(error)))


def complaint(reason: str, message: str) -> Complaint:
    """Bounded: it is kept in the workflow."""
    return Complaint(reason, message if len(message) <= _MESSAGE_MAX else message[: _MESSAGE_MAX - 1] + "…")

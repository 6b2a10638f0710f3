"""A full backfill in the foreground: makes an index equal to its table whatever happened to it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from daemon.core.change import Outcome
from daemon.core.version import SnapshotVersion
from daemon.core.work import Refusal
from daemon.errors import RejectRow
from daemon.index.layout import document_id
from daemon.index.writer import IndexWriter
from daemon.projection.projector import Projector
from daemon.source.postgres.reader import BlockingTransaction
from daemon.verify.checker import ROWS_PER_CHUNK, OnProgress, Subject
from daemon.verify.differences import Report

_BARRIER_POLL_S = 0.2


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        outcomes: of the rows: embedded, metadata, unchanged, superseded (a newer change was there), dead_lettered.
        swept: documents and markers older than the snapshot, removed.
        pruned: single chunks and foreign keys, removed.
        reasons: why a reconcile was due; dealt with now.
    """

    outcomes: dict[str, int]
    swept: int
    pruned: int
    reasons: tuple[str, ...]


class NoRecords:
    """The dead letters of a backfill: a row that was read from the table is still there, and waits in it."""

    async def put(self, refusal: Refusal, error: RejectRow) -> None:
        """Nothing to keep."""


async def repair(
    subject: Subject,
    writer: IndexWriter,
    projector: Projector,
    found: Report,
    surplus: Mapping[str, Collection[int]],
    counts: Callable[[Outcome], int],
    on_progress: OnProgress,
    on_wait: Callable[[str], None],
) -> Repaired:
    """Backfill under the version rule; live changes may be applied meanwhile.

    Args:
        found: what a check told; these documents are written whole, even where their text did not change.
        surplus: chunks that may be surplus, by document.
        counts: how many rows ended so.
        on_wait: gets what is waited for: a transaction that has to end before the table is read.

    Raises:
        FailureClass: a part failed; what was done is no harm, and a second repair goes on.
    """
    reasons = await writer.reconcile_reasons()
    start = await subject.reader.barrier(lambda running: on_wait(_waiting(running)), _BARRIER_POLL_S)
    await _project_rows(subject, projector, found, on_progress)
    swept = await _sweep(writer, start, on_progress)
    await subject.stored.remove(found.foreign_keys)
    pruned = await subject.stored.prune(
        [(identifier, number) for identifier, numbers in surplus.items() for number in sorted(numbers)]
    )
    await writer.reconciled(reasons)
    return Repaired(
        outcomes={outcome.value: counts(outcome) for outcome in Outcome if counts(outcome)},
        swept=swept,
        pruned=pruned + len(found.foreign_keys),
        reasons=tuple(sorted(reasons)),
    )


async def _project_rows(
    subject: Subject, projector: Projector, found: Report, on_progress: OnProgress
) -> None:
    total = await subject.reader.count_estimate(subject.table)
    after, done = None, 0
    while True:
        read = await subject.reader.chunk(subject.table, after, ROWS_PER_CHUNK, subject.builder.columns)
        rows = [(document_id(subject.rows.key(row)), read.version, row) for row in read.rows]
        await projector.project(rows, rewrite=found.differing.keys())
        done += len(rows)
        on_progress("repair", done, max(total, done))
        if len(rows) < ROWS_PER_CHUNK:
            return
        after = subject.rows.key(read.rows[-1])


async def _sweep(writer: IndexWriter, start: SnapshotVersion, on_progress: OnProgress) -> int:
    """What is older than the backfill's first snapshot and was not read by it has no row."""
    await writer.raise_floors(start)
    return await writer.sweep(start, lambda seen: on_progress("sweep", seen, None))


def _waiting(running: list[BlockingTransaction]) -> str:
    return f"for {running[0]}" if running else "for a transaction to end"

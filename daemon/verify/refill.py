"""A full backfill, as `livevec verify --repair` and the activities of a backfill make it: copy, put a floor, sweep.

It is due where the log lacked something: single documents that are mended are not enough then. Rows are copied in
steps of a second: read ahead, projected, and on disk before the position moves on.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from daemon.core.change import Operation, Outcome
from daemon.core.version import SnapshotVersion, sweeps
from daemon.core.work import Refusal
from daemon.errors import FailureClass, RejectRow, StopPipeline
from daemon.index.durability import Durability
from daemon.index.layout import document_id
from daemon.projection.build import Projection
from daemon.projection.projector import SourceRow
from daemon.projection.slow_lane import SlowLane
from daemon.source.postgres.failures import refusal_of_read
from daemon.source.postgres.reader import BlockingTransaction, SnapshotRows
from daemon.verify.differences import added
from daemon.verify.examiner import refuse_emptying
from daemon.verify.pace import Interruption
from daemon.verify.sides import Key, OnProgress

STEP_S = 1.0
ROWS_MIN, ROWS_MAX = 256, 5_000
_TEXT_CHARS_MAX = 8_000_000
"""Text of one read: three reads are in memory at once."""
_PROJECTING = 3
"""Steps at once: while the last requests of one are written, the first of the next are embedded."""
_UNSETTLED_MAX = 32
_UNREADABLE_MAX = 1_000
_BARRIER_POLL_S = 0.2


class KeyRange(BaseModel, frozen=True):
    """The rows to copy, and how fast.

    Attributes:
        where: an SQL condition over the table's columns; None: all rows.
        after: key to go on from.
        inclusive: begin with `after` itself.
        until: the last key of the range; None: that of the table.
        rate: most rows a second.
        rows_per_read: to begin with.
        limit_s: how long to copy; None: to the end of the range.
    """

    where: str | None = None
    after: Key | None = None
    inclusive: bool = False
    until: Key | None = None
    rate: float | None = None
    rows_per_read: int = ROWS_MIN
    limit_s: float | None = None


class Copied(BaseModel, frozen=True):
    """What was copied so far: also what a backfill's heartbeats carry, and another attempt goes on from.

    Attributes:
        after: up to this key every row's effect is in Redis, and on its disk where Redis can tell.
        ended: the range was read to its end.
        rows: read, those that were refused included.
        outcomes: of the rows, by name.
        unreadable: rows that could not be read or decoded; each has a dead letter.
        skipped: the rest of the range could not be read at all.
        rate_per_s: rows a second, lately.
        rows_per_read: what suits this table and this embedder.
        note: what a person should know.
    """

    after: Key | None = None
    ended: bool = False
    rows: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict)
    unreadable: int = 0
    skipped: bool = False
    rate_per_s: float | None = None
    rows_per_read: int = ROWS_MIN
    note: str = ""


async def refill(
    projection: Projection,
    durability: Durability,
    marks: Mapping[str, float],
    on_progress: OnProgress,
    on_wait: Callable[[str], None],
    *,
    may_empty: bool,
) -> tuple[Copied, int]:
    """Backfill the whole table in this process; return what was copied, and how many documents were swept.

    Args:
        marks: why it is due, and since when; cleared afterwards, unless they were set again.
        on_wait: gets the transaction that has to end before the table is read.

    Raises:
        FailureClass: a part failed; what was done is no harm, and a second attempt goes on.
        StopPipeline: rows could not be read, or most of the index would be removed.
    """
    call, reader, table = projection.patience.call, projection.reader, projection.table

    def waiting(running: list[BlockingTransaction]) -> None:
        on_wait(f"for {running[0]}" if running else "for a transaction to end")

    snapshot = await call(reader.part, reader.barrier, waiting, _BARRIER_POLL_S)
    total = await call(reader.part, reader.count_estimate, table)
    copier = Copier(projection, projection.lane, durability, KeyRange(), Copied())
    copier.on_copied = lambda copied: on_progress("backfill", copied.rows, max(total, copied.rows))
    copied = await copier.run(Interruption())
    if copied.unreadable:
        raise StopPipeline(
            f"{copied.unreadable} rows of {table.name} could not be read, so orphans were left; correct the rows "
            f"(`livevec backfill {projection.pipeline.name}` names them in its dead letters) and repair again"
        )

    def swept(seen: int) -> None:
        on_progress("sweep", seen, None)

    return copied, await close(projection, durability, snapshot, marks, swept, may_empty=may_empty)


async def close(
    projection: Projection,
    durability: Durability,
    snapshot: SnapshotVersion,
    marks: Mapping[str, float],
    on_progress: Callable[[int], None],
    *,
    may_empty: bool = False,
) -> int:
    """Put the backfill's snapshot as a floor into every bucket, and remove what it beats: documents without a row.

    Args:
        snapshot: taken after the barrier and before the first row was read.
        marks: see `refill`.
        on_progress: gets how many documents were looked at.
        may_empty: sweep also where that removes most of the index.

    Raises:
        StopPipeline: most of the index would be removed.
    """
    writer = projection.writer
    if not may_empty:
        documents = beaten = 0
        async for ids in writer.ids(500):
            for stored in await writer.lookup(ids):
                if stored is not None and stored.content_hash is not None:
                    documents += 1
                    beaten += sweeps(snapshot, stored.version)
        refuse_emptying(projection.pipeline.name, beaten, documents)
    await writer.raise_floors(snapshot)
    removed = await writer.sweep(snapshot, on_progress)
    await durability.reached()
    await writer.reconciled(marks)
    return removed


@dataclass(frozen=True, slots=True)
class _Read:
    """Some rows. `after`: the key that the next read goes on from; `unreadable`: one row that could not be read."""

    rows: Sequence[SourceRow]
    after: Key | None
    ended: bool
    unreadable: int = 0
    skipped: bool = False


class Copier:
    """Copies rows until the range or the time is over, or until asked to end; `begun`: where an earlier attempt was."""

    def __init__(
        self, projection: Projection, lane: SlowLane, durability: Durability, order: KeyRange, begun: Copied
    ) -> None:
        self.copied = begun
        self.on_copied: Callable[[Copied], None] = lambda copied: None
        self._projection = projection
        self._lane = lane
        self._durability = durability
        self._order = order
        self._limit = self._within_rate(begun.rows_per_read)
        self._inclusive = order.inclusive and not begun.rows
        self._free = asyncio.Semaphore(_PROJECTING)
        self._began_s = time.monotonic()
        self._before = begun.rows

    async def run(self, interruption: Interruption) -> Copied:
        """Return what was copied, all of it on disk; where FailureClass is raised, go on from `copied`."""
        steps: deque[tuple[_Read, asyncio.Task[Counter[Outcome]]]] = deque()
        reading = asyncio.ensure_future(self._read(self.copied.after))
        limit_s = float("inf") if self._order.limit_s is None else self._order.limit_s
        try:
            while not self.copied.ended:
                await self._free.acquire()
                if interruption.asked or time.monotonic() - self._began_s > limit_s:
                    break
                read = await reading
                if not read.ended:
                    reading = asyncio.ensure_future(self._read(read.after))
                steps.append((read, asyncio.ensure_future(self._step(read.rows))))
                await self._settle(steps, _UNSETTLED_MAX)
                if read.ended:
                    break
            await self._settle(steps, 0)
        finally:
            pending = [reading, *(task for _, task in steps)]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return self.copied

    async def _step(self, rows: Sequence[SourceRow]) -> Counter[Outcome]:
        try:
            outcomes = await self._lane.project(rows)
        finally:
            self._free.release()
        await self._durability.reached()
        return outcomes

    async def _settle(
        self, steps: "deque[tuple[_Read, asyncio.Task[Counter[Outcome]]]]", unsettled_max: int
    ) -> None:
        """Move on past the steps that are done, in order; wait for the first while too many are not."""
        while steps and (steps[0][1].done() or len(steps) > unsettled_max):
            outcomes = await steps[0][1]
            read, _ = steps.popleft()
            self._move_on(read, outcomes)
        for _, task in steps:
            if task.done():
                # A step that failed behind one that still runs: its error now, not after that one's patience.
                task.result()

    def _move_on(self, read: _Read, outcomes: Counter[Outcome]) -> None:
        before = self.copied
        rows = before.rows + len(read.rows) + read.unreadable
        counts = {outcome.value: count for outcome, count in outcomes.items()}
        dead_lettered = {Outcome.DEAD_LETTERED.value: read.unreadable}
        rate_per_s = (rows - self._before) / max(time.monotonic() - self._began_s, 1e-3)
        self._limit = self._adapted(read.rows, rate_per_s)
        self.copied = Copied(
            after=read.after,
            ended=read.ended,
            rows=rows,
            outcomes=added(added(before.outcomes, counts), dead_lettered),
            unreadable=before.unreadable + read.unreadable,
            skipped=read.skipped,
            rate_per_s=rate_per_s,
            rows_per_read=self._limit,
            note=self._durability.unprovable,
        )
        self.on_copied(self.copied)

    def _adapted(self, rows: Sequence[SourceRow], rate_per_s: float) -> int:
        """Return how many rows take about a second and fit into memory; at most twice the last."""
        limit = max(ROWS_MIN, min(2 * self._limit, int(rate_per_s * STEP_S), ROWS_MAX))
        characters = sum(self._projection.builder.text_size(row) for _, _, row in rows if row is not None)
        if characters:
            limit = min(limit, _TEXT_CHARS_MAX * len(rows) // characters)
        return self._within_rate(max(1, limit))

    def _within_rate(self, rows: int) -> int:
        """Return so few rows that a throttled step lasts no longer than another: a pause has to wait for it."""
        rate = self._order.rate
        return rows if rate is None else max(1, min(rows, int(rate * STEP_S)))

    # ---- reading

    async def _read(self, after: Key | None) -> _Read:
        """Read the next rows; where they cannot be read, fewer, down to the one row that cannot."""
        limit = self._limit
        while isinstance(
            read := await self._chunk(after, limit, self._projection.builder.columns), RejectRow
        ):
            if limit == 1:
                return await self._past_unreadable(after, read)
            limit //= 2
        self._inclusive = False
        key = self._projection.rows.key
        rows = [(document_id(key(row)), read.version, row) for row in read.rows]
        return _Read(rows, key(read.rows[-1]) if read.rows else after, ended=len(rows) < limit)

    async def _chunk(self, after: Key | None, limit: int, columns: Sequence[str]) -> SnapshotRows | RejectRow:
        """Read some rows; where one of them cannot be read, return why."""
        order, projection = self._order, self._projection
        try:
            return await projection.patience.call(
                projection.reader.part,
                projection.reader.chunk,
                projection.table,
                after,
                limit,
                columns,
                order.where if columns else None,
                order.until,
                inclusive=self._inclusive,
            )
        except (FailureClass, ValueError, ArithmeticError, LookupError) as error:
            refused = refusal_of_read(error)
            if refused is None:
                raise
            return refused

    async def _past_unreadable(self, after: Key | None, refused: RejectRow) -> _Read:
        """Dead-letter the row that is next, by its key alone; where not even that can be read, skip the range."""
        if self.copied.unreadable >= _UNREADABLE_MAX:
            raise StopPipeline(
                f"more than {_UNREADABLE_MAX} rows cannot be read ({refused}); their keys are in the dead letters: "
                "correct the rows, or --where, and start the backfill again"
            )
        read = await self._chunk(after, 1, ())
        if isinstance(read, RejectRow):
            await self._reject("", refused)
            return _Read((), after, ended=True, unreadable=1, skipped=True)
        if not read.rows:
            return _Read((), after, ended=True)
        self._inclusive = False
        key = self._projection.table.key_of(read.rows[0])
        await self._reject(document_id(key), refused)
        return _Read((), key, ended=False, unreadable=1)

    async def _reject(self, identifier: str, refused: RejectRow) -> None:
        refusal = Refusal(identifier, Operation.REREAD, None, time.time())
        await self._projection.projector.refuse(refusal, refused)

"""Rows of one key range on their way into the index, in steps of a second: read ahead, project, reach the disk."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.core.change import Operation, Outcome
from daemon.core.work import Refusal
from daemon.errors import FailureClass, RejectRow, StopPipeline
from daemon.index.durability import Durability
from daemon.index.layout import document_id
from daemon.projection.build import Projection
from daemon.projection.projector import SourceRow
from daemon.projection.slow_lane import SlowLane
from daemon.source.postgres.failures import refusal_of_read
from daemon.source.postgres.reader import SnapshotRows
from workflows.backfill.contract import Copied, CopyOrder, Key
from workflows.interruption import Interruption
from workflows.progress import Beat

STEP_S = 1.0
ROWS_MIN, ROWS_MAX = 256, 5_000
_TEXT_CHARS_MAX = 8_000_000
"""Text of one read: three reads are in memory at once."""
_PROJECTING = 3
"""Steps at once: while the last requests of one are written, the first of the next are embedded."""
_UNSETTLED_MAX = 32
_UNREADABLE_MAX = 1_000


@dataclass(frozen=True, slots=True)
class _Read:
    """`after`: the key that the next read goes on from; `rows`: None: one row that cannot be read."""

    rows: Sequence[SourceRow]
    after: Key | None
    ended: bool
    unreadable: int = 0
    skipped: bool = False


class Copier:
    """Copies from `order.after`, or from where an earlier attempt was, until the range or the time is over."""

    def __init__(
        self, projection: Projection, lane: SlowLane, durability: Durability, order: CopyOrder, begun: Copied
    ) -> None:
        self._projection = projection
        self._lane = lane
        self._durability = durability
        self._order = order
        self._limit = self._within_rate(begun.rows_per_read)
        self._inclusive = order.inclusive and not begun.rows
        self._free = asyncio.Semaphore(_PROJECTING)
        self._began_s = time.monotonic()
        self._before = begun.rows
        self.copied = begun

    def beat(self) -> Beat:
        """For the heartbeat."""
        return Beat(done=self.copied.rows, rate_per_s=self.copied.rate_per_s)

    async def run(self, interruption: Interruption) -> Copied:
        """What was copied; all of it is on disk.

        Raises:
            FailureClass: a part failed; `copied` is where to go on from.
        """
        steps: deque[tuple[_Read, asyncio.Task[Counter[Outcome]]]] = deque()
        reading = asyncio.ensure_future(self._read(self.copied.after))
        try:
            while not self.copied.ended:
                await self._free.acquire()
                if interruption.asked or time.monotonic() - self._began_s > self._order.limit_s:
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
        counts = Counter(before.outcomes)
        counts.update({outcome.value: count for outcome, count in outcomes.items()})
        if read.unreadable:
            counts[Outcome.DEAD_LETTERED.value] += read.unreadable
        elapsed_s = time.monotonic() - self._began_s
        self.copied = before.model_copy(
            update={
                "after": read.after,
                "ended": read.ended,
                "rows": rows,
                "outcomes": dict(counts),
                "unreadable": before.unreadable + read.unreadable,
                "skipped": read.skipped,
                "rate_per_s": (rows - self._before) / max(elapsed_s, 1e-3),
                "note": self._durability.unprovable,
            }
        )
        self._adapt(read.rows)

    def _adapt(self, rows: Sequence[SourceRow]) -> None:
        """As many rows as take about a second, and as fit into memory; at most twice the last."""
        rate = self.copied.rate_per_s
        limit = 2 * self._limit if rate is None else min(2 * self._limit, int(rate * STEP_S))
        limit = max(ROWS_MIN, min(limit, ROWS_MAX))
        characters = sum(self._projection.builder.text_size(row) for _, _, row in rows if row is not None)
        if characters:
            limit = min(limit, _TEXT_CHARS_MAX * len(rows) // characters)
        self._limit = self._within_rate(max(1, limit))
        self.copied = self.copied.model_copy(update={"rows_per_read": self._limit})

    def _within_rate(self, rows: int) -> int:
        """A throttled step lasts no longer than another: it is what a pause has to wait for."""
        rate = self._order.rate
        return rows if rate is None else max(1, min(rows, int(rate * STEP_S)))

    # ---- reading

    async def _read(self, after: Key | None) -> _Read:
        """The next rows; where they cannot be read, fewer, down to the one row that cannot."""
        limit = self._limit
        while True:
            try:
                read = await self._chunk(after, limit, self._projection.builder.columns)
            except (FailureClass, ValueError, ArithmeticError, LookupError) as error:
                refused = refusal_of_read(error)
                if refused is None:
                    raise
                if limit == 1:
                    return await self._past_unreadable(after, refused)
                limit //= 2
                continue
            self._inclusive = False
            rows = self._projection.rows
            last = rows.key(read.rows[-1]) if read.rows else after
            found = [(document_id(rows.key(row)), read.version, row) for row in read.rows]
            return _Read(found, last, ended=len(found) < limit)

    async def _chunk(self, after: Key | None, limit: int, columns: Sequence[str]) -> SnapshotRows:
        order, projection = self._order, self._projection
        return await projection.patience.call(
            "source",
            lambda: projection.reader.chunk(
                projection.table,
                after,
                limit,
                columns,
                order.where if columns else None,
                order.until,
                inclusive=self._inclusive,
            ),
        )

    async def _past_unreadable(self, after: Key | None, refused: RejectRow) -> _Read:
        """Dead-letter the row that is next, by its key alone; where not even that can be read, skip the range."""
        if self.copied.unreadable >= _UNREADABLE_MAX:
            raise StopPipeline(
                f"more than {_UNREADABLE_MAX} rows cannot be read ({refused}); their keys are in the dead letters: "
                "correct the rows, or --where, and start the backfill again"
            )
        try:
            read = await self._chunk(after, 1, ())
        except (FailureClass, ValueError, ArithmeticError, LookupError) as error:
            if refusal_of_read(error) is None:
                raise
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

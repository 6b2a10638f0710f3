"""The activities of a backfill: plan it, wait for its barrier, copy rows, put the floor and sweep."""

import hashlib
from typing import Any

from temporalio import activity

from daemon.core.version import SnapshotVersion, decode
from daemon.errors import ConfigError, RetryLater, StopPipeline
from daemon.index.layout import document_key
from daemon.projection.build import Projection
from daemon.verify.pace import Interruption
from daemon.verify.refill import Copied, Copier, close
from daemon.verify.sides import Key
from workflows.backfill.contract import (
    BackfillPlan,
    BarrierLook,
    BarrierSeen,
    Closing,
    CopyOrder,
    Swept,
    Target,
)
from workflows.interruption import begun, interruptible
from workflows.progress import Beat
from workflows.resources import Resources

_ROWS_PER_RANGE_MIN = 100_000
_RANGES_MAX = 64
_LOOK_S = 0.25
LOOKING_S = 60.0
"""Longest that one look at the barrier takes where nothing changes."""


class BackfillActivities:
    """What a backfill has done; all share the worker's resources."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    @activity.defn(name="backfill_plan")
    async def plan(self, target: Target) -> BackfillPlan:
        """Look at the table and the index as they are now.

        Raises:
            ConfigError: there is no such pipeline or index version, `from_key` is no key of the table, or `where`
                no condition over it.
            StopPipeline: the table is not what it must be.
        """
        async with self._resources.projection(target.pipeline, target.version, fresh=True) as projection:
            await self._resources.patience.call("redis", projection.ensure_index)
            table, reader = projection.table, projection.reader
            first = await _key(target, projection)
            # They are of the version that readers see: a copy of it that is being built deals with none of them.
            active = (await projection.versions.known()).active
            reasons = await projection.writer.reconcile_reasons()
            if projection.version.number != active:
                reasons = {}
            bounds: list[Key] = []
            if target.full:
                total = await reader.count_estimate(table)
                parts = min(_RANGES_MAX, total // _ROWS_PER_RANGE_MIN)
                bounds = await reader.key_ranges(table, parts) if parts > 1 else []
            else:
                total = await _matching(target, first, projection)
            written = await projection.versions.writers(projection.version.number)
            return BackfillPlan(
                version=projection.version.number,
                table=fingerprint(projection),
                bounds=tuple(bounds),
                first=first,
                total=total,
                reasons=tuple(sorted(reasons)),
                marks=reasons,
                note=""
                if written
                else "no daemon has written the log's changes to this index version yet; start `livevec run`",
            )

    @activity.defn(name="backfill_barrier")
    async def barrier(self, look: BarrierLook) -> BarrierSeen:
        """Begin the barrier, or look until it is passed or waits for others than were seen."""

        async def work(interruption: Interruption) -> BarrierSeen:
            async with self._resources.projection(look.pipeline, look.version) as projection:
                call, reader = projection.patience.call, projection.reader
                barrier = await call(reader.part, reader.barrier_begun) if look.begun is None else look.begun
                looks = 0
                while True:
                    passed = await call(reader.part, reader.barrier_passed, barrier)
                    if isinstance(passed, SnapshotVersion):
                        return BarrierSeen(begun=barrier, snapshot=passed.encode())
                    blocking = tuple(str(transaction) for transaction in passed)
                    looks += 1
                    over = looks * _LOOK_S >= LOOKING_S
                    if blocking != look.seen or over or await interruption.wait(_LOOK_S):
                        return BarrierSeen(begun=barrier, snapshot=None, blocking=blocking)

        return await interruptible(work, lambda: ())

    @activity.defn(name="backfill_copy")
    async def copy(self, order: CopyOrder) -> Copied:
        """Copy rows until the range or the time is over; another attempt goes on from the last heartbeat.

        Raises:
            StopPipeline: the table is not the one that the backfill was planned for.
        """
        start = begun(Copied) or Copied(after=order.after, rows_per_read=order.rows_per_read)
        copier: Copier | None = None

        async def work(interruption: Interruption) -> Copied:
            nonlocal copier
            async with self._resources.projection(order.pipeline, order.version) as projection:
                if fingerprint(projection) != order.table:
                    raise StopPipeline(
                        f"{projection.table.name} has other columns, or another key, than when this backfill "
                        f"began; start it again: `livevec backfill {order.pipeline}`"
                    )
                durability = await self._resources.durability(projection)
                lane = self._resources.lane(projection)
                lane.rate_rows_s = order.rate
                copier = Copier(projection, lane, durability, order, start)
                return await copier.run(interruption)

        def beat() -> tuple[Any, ...]:
            now = copier.copied if copier else start
            return now, Beat(done=now.rows, rate_per_s=now.rate_per_s if copier else None)

        return await interruptible(work, beat)

    @activity.defn(name="backfill_close")
    async def close(self, closing: Closing) -> Swept:
        """Put S0 as a floor into every bucket, and remove what it beats: documents without a row.

        Raises:
            StopPipeline: most of the index would be removed.
        """
        seen = 0

        async def work(interruption: Interruption) -> Swept:
            def progressed(count: int) -> None:
                nonlocal seen
                seen = count
                if interruption.asked:
                    raise RetryLater(
                        "the worker stops, or this was cancelled; a sweep begins again from its start"
                    )

            async with self._resources.projection(closing.pipeline, closing.version) as projection:
                durability = await self._resources.durability(projection)
                snapshot = decode(closing.snapshot)
                assert isinstance(snapshot, SnapshotVersion)
                removed = await close(projection, durability, snapshot, closing.marks, progressed)
            return Swept(removed=removed)

        return await interruptible(work, lambda: (None, Beat(done=seen)))


async def _key(target: Target, projection: Projection) -> Key | None:
    if target.from_key is None:
        return None
    table = projection.table
    key = document_key(target.from_key, len(table.key))
    try:
        if len(key) == len(table.key):
            await projection.reader.reread(table, [key], ())
            return key
    except StopPipeline:
        pass
    shown = ", ".join(f"{name} {table.column(name).type_name}" for name in table.key)
    raise ConfigError(
        f"{target.from_key!r} is no key of {table.name} ({shown}): write the values of its columns, joined by /, "
        "with / and % in a value as %2F and %25"
    )


async def _matching(target: Target, first: Key | None, projection: Projection) -> int:
    try:
        return await projection.reader.matching_estimate(projection.table, target.where, first)
    except StopPipeline as error:
        # Without its remedy, which is for columns that the pipeline names.
        what = str(error).partition("; ")[0]
        raise ConfigError(f"--where is no condition over {projection.table.name}: {what}") from None


def fingerprint(projection: Projection) -> str:
    """Return a digest of the table, its key and the columns that are used: it tells whether they are still the same."""
    table = projection.table
    used = [table.column(name) for name in (*table.key, *projection.builder.columns)]
    what = (table.oid, table.key, [(column.name, column.type_name) for column in used])
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]

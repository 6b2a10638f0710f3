"""Ways of breaking the shell, each of which must turn a test red: without them nobody knows that the tests can fail."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from daemon.core.progress import PartitionProgress, Receipt
from daemon.index.connection import translated
from daemon.index.layout import pipeline_key
from daemon.index.positions import Positions, Verdict
from daemon.index.writer import IndexWriter
from daemon.live.dispatcher import Dispatcher, Kind
from daemon.live.mirror import Mirror
from daemon.live.partitions import Partitions
from daemon.live.versions import LiveVersions
from daemon.source.postgres import identity, table_watch

Mutation = Callable[[], AbstractContextManager[Any]]


@contextmanager
def acknowledge_before_write() -> Iterator[None]:
    """A record counts as done when it has been read."""
    read = PartitionProgress.read

    def acknowledged(self: PartitionProgress, offset: int, readers: int = 1) -> Receipt:
        receipt = read(self, offset, 1)
        receipt.settle()
        return Receipt(PartitionProgress(), offset, readers)

    with patch.object(PartitionProgress, "read", acknowledged):
        yield


@contextmanager
def drop_a_revoke() -> Iterator[None]:
    """What was done before a revocation goes on to count after it."""
    assigned, lost = Partitions.assigned, Partitions.lost
    kept: dict[int, dict[Any, PartitionProgress]] = {}

    def lost_and_kept(self: Partitions, partitions: Any) -> None:
        mine = kept.setdefault(id(self), {})
        mine.update({p: self._progress[p] for p in partitions if p in self._progress})
        lost(self, partitions)

    async def assigned_as_before(self: Partitions, committed: Any) -> Any:
        start = await assigned(self, committed)
        self._progress.update({p: old for p, old in kept.get(id(self), {}).items() if p in committed})
        return start

    with (
        patch.object(Partitions, "lost", lost_and_kept),
        patch.object(Partitions, "assigned", assigned_as_before),
    ):
        yield


@contextmanager
def store_before_mark() -> Iterator[None]:
    """What is seen of the source is noted as seen before the reconcile that it calls for is marked."""
    check_table, check_identity = table_watch.TableWatch.check, identity.IdentityWatch.check

    async def table_stored_first(self: Any, mark: Any) -> None:
        reasons: list[str] = []

        async def later(reason: str) -> None:
            reasons.append(reason)

        await check_table(self, later)
        for reason in reasons:
            await mark(reason)

    async def identity_stored_first(self: Any, mark: Any) -> None:
        reasons: list[str] = []

        async def later(reason: str) -> None:
            reasons.append(reason)

        await check_identity(self, later)
        for reason in reasons:
            await mark(reason)

    with (
        patch.object(table_watch.TableWatch, "check", table_stored_first),
        patch.object(identity.IdentityWatch, "check", identity_stored_first),
    ):
        yield


def give_up_each_time() -> AbstractContextManager[Any]:
    """Each batch of a version that fails gives the version up, the second time, too."""

    def give_up(self: LiveVersions, mirror: Mirror, error: Any) -> None:
        self._given_up.append((mirror, error))
        self._let_go(mirror)

    return patch.object(LiveVersions, "give_up", give_up)


def wait_for_every_model() -> AbstractContextManager[Any]:
    """A version that readers do not see is waited for, too."""
    add = LiveVersions._add

    async def waiting(self: LiveVersions, pipeline: Any, version: Any, active: bool, *, wait: bool) -> None:
        del wait
        await add(self, pipeline, version, active, wait=True)

    return patch.object(LiveVersions, "_add", waiting)


def sweep_in_turn() -> AbstractContextManager[Any]:
    """Nothing else begins while a sweep runs."""
    pump = Dispatcher.pump

    def in_turn(self: Dispatcher) -> None:
        if not self._counts[Kind.SWEEP]:
            pump(self)

    return patch.object(Dispatcher, "pump", in_turn)


def clear_marks_by_name() -> AbstractContextManager[Any]:
    """A reconcile clears its reasons, also one that came up again after it was read."""

    async def reconciled(self: IndexWriter, marks: dict[str, float]) -> None:
        if marks:
            with translated():
                await self.client.hdel(pipeline_key(self.layout.pipeline, "reconcile"), *marks)

    return patch.object(IndexWriter, "reconciled", reconciled)


def trust_a_redis_that_restarted() -> AbstractContextManager[Any]:
    """Only positions tell whether Redis lost writes."""
    advance = Positions._advance

    async def trusting(self: Positions, key: str, offsets: Any) -> Verdict | None:
        verdict = await advance(self, key, offsets)
        if verdict is not Verdict.RESTARTED:
            return verdict
        self._servers[key] = (await self._call(key, ["@server", "", ""]))[1].decode()
        return await advance(self, key, offsets)

    return patch.object(Positions, "_advance", trusting)

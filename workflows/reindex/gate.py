"""The activities of a reindex that compare: changes of the two versions, answers, a look at some rows."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from temporalio import activity

from daemon.core.plan import Stored
from daemon.core.version import LogVersion, replaces
from daemon.index.keyspace import Keyspace
from daemon.index.layout import Layout, document_id
from daemon.index.writer import IndexWriter
from daemon.projection.build import Projection
from daemon.verify.comparison import RowComparison
from daemon.verify.looks import LookPace, SecondLooks
from daemon.verify.pace import Interruption
from daemon.verify.sides import Sides
from workflows.interruption import interruptible
from workflows.progress import Beat
from workflows.reindex.contract import Behind, Pair, Quality, ShortParity, VersionOf
from workflows.reindex.quality import QualityCheck
from workflows.resources import Resources

T = TypeVar("T")
_LOOK_AGAIN_S = 0.5
_LAG_S = 30.0
"""How long a change may be on its way to one version when the other has it."""
_EXAMPLES = 10
_ROWS_LOOKED_AT = 1000


class ReindexGateActivities:
    """What a reindex has measured; all share the worker's resources."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._call = resources.patience.call

    @activity.defn(name="reindex_behind")
    async def behind(self, pair: Pair) -> Behind:
        """Compare the versions of all documents that both index versions have."""
        seen = 0

        async def work(_: Interruption) -> Behind:
            nonlocal seen
            async with self._resources.projection(pair.pipeline, pair.new) as projection:
                compared = _Compared(projection, pair, self._resources.config.redis.pipeline_commands_max)
                keyspace = Keyspace(projection.client, compared.old.layout)
                suspects: set[str] = set()
                async for step in keyspace.steps(self._resources.patience):
                    ids = compared.ids(step.keys)
                    suspects |= await self._call("redis", compared.behind, ids)
                    seen += len(ids)
                looks = int(_LAG_S / _LOOK_AGAIN_S)
                while suspects and looks:
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    suspects = await self._call("redis", compared.behind, sorted(suspects))
                    looks -= 1
                return Behind(
                    documents=seen, behind=len(suspects), examples=tuple(sorted(suspects)[:_EXAMPLES])
                )

        return await interruptible(work, lambda: (None, Beat(done=seen)))

    @activity.defn(name="reindex_quality")
    async def quality(self, pair: Pair) -> Quality:
        """Measure recall, and compare answers."""
        check: QualityCheck | None = None

        async def work(_: Interruption) -> Quality:
            nonlocal check
            async with self._resources.projection(pair.pipeline, pair.new) as projection:
                table = await self._call("redis", projection.versions.known)
                check = QualityCheck(self._resources, projection, table.version(pair.old))
                return await check.run()

        return await interruptible(work, lambda: (None, Beat(done=check.vectors if check else 0)))

    @activity.defn(name="reindex_short_parity")
    async def short_parity(self, version: VersionOf) -> ShortParity:
        """Compare some rows, from all over the table, with their documents."""

        async def work(_: Interruption) -> ShortParity:
            async with self._resources.projection(version.pipeline, version.number, fresh=True) as projection:
                reader, table = projection.reader, projection.table
                bounds = await self._call(reader.part, reader.key_ranges, table, _ROWS_LOOKED_AT + 1)
                ids = {document_id(key) for key in bounds}
                looks = SecondLooks(RowComparison(Sides(projection, vectors=False)), LookPace(_LAG_S))
                differing = await looks.settle(ids, {})
                assert differing is not None, "nothing stops it"
                kinds = Counter(kind.value for shown in differing.values() for kind in shown)
                return ShortParity(rows=len(ids), differing=dict(kinds))

        return await interruptible(work, lambda: ())


class _Compared:
    """The bookkeeping of two index versions of a pipeline."""

    def __init__(self, projection: Projection, pair: Pair, commands_max: int) -> None:
        self.old = IndexWriter(projection.client, Layout(pair.pipeline, pair.old), commands_max)
        self._new = projection.writer

    def ids(self, keys: Sequence[str]) -> list[str]:
        """Return the documents whose bookkeeping is among these keys of the old version."""
        layout = self.old.layout
        return [layout.identifier(key) for key in keys if key.startswith(layout.bookkeeping_prefix)]

    async def behind(self, ids: Sequence[str]) -> set[str]:
        """Return those of which the new version lacks the last change."""
        old, new = await self.old.lookup(ids), await self._new.lookup(ids)
        return {one for one, before, after in zip(ids, old, new, strict=True) if is_behind(before, after)}


def is_behind(old: Stored | None, new: Stored | None) -> bool:
    """Return whether the new version lacks the last change that the old one has from the log.

    Rows that each version's daemon has read by itself have snapshots of their own, which say nothing here; a document
    that one version lacks is found by the comparison with the table.
    """
    if old is None or new is None or not isinstance(old.version, LogVersion):
        return False
    return replaces(old.version, new.version) and not replaces(new.version, old.version)

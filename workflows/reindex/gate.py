"""The activities of a reindex that compare: changes of the two versions, answers, a look at some rows."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from temporalio import activity

from daemon.core.plan import Stored
from daemon.core.version import LogVersion, replaces
from daemon.index.keyspace import Keyspace
from daemon.index.layout import Layout, document_id
from daemon.index.writer import IndexWriter
from daemon.verify.comparison import RowComparison
from daemon.verify.looks import SecondLooks
from daemon.verify.pace import Interruption
from daemon.verify.sides import Sides
from workflows.interruption import interruptible
from workflows.progress import Beat
from workflows.reindex.contract import Behind, Pair, Quality, ShortParity, VersionOf
from workflows.reindex.quality import QualityCheck
from workflows.resources import Resources

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
                layout = Layout(pair.pipeline, pair.old)
                commands_max = self._resources.config.redis.pipeline_commands_max
                old = IndexWriter(projection.client, layout, commands_max)

                async def lacking(ids: Sequence[str]) -> set[str]:
                    before, after = await old.lookup(ids), await projection.writer.lookup(ids)
                    documents = zip(ids, before, after, strict=True)
                    return {identifier for identifier, *stored in documents if is_behind(*stored)}

                suspects: set[str] = set()
                async for step in Keyspace(projection.client, layout).steps(self._resources.patience):
                    prefix = layout.bookkeeping_prefix
                    ids = [layout.identifier(key) for key in step.keys if key.startswith(prefix)]
                    suspects |= await self._call("redis", lacking, ids)
                    seen += len(ids)
                looks = int(_LAG_S / _LOOK_AGAIN_S)
                while suspects and looks:
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    suspects = await self._call("redis", lacking, sorted(suspects))
                    looks -= 1
                examples = tuple(sorted(suspects)[:_EXAMPLES])
                return Behind(documents=seen, behind=len(suspects), examples=examples)

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
                looks = SecondLooks(RowComparison(Sides(projection, vectors=False)), _LAG_S)
                differing = await looks.settle(ids, {})
                assert differing is not None, "nothing stops it"
                kinds = Counter(kind.value for shown in differing.values() for kind in shown)
                return ShortParity(rows=len(ids), differing=dict(kinds))

        return await interruptible(work, lambda: ())


def is_behind(old: Stored | None, new: Stored | None) -> bool:
    """Return whether the new version lacks the last change that the old one has from the log.

    Rows that each version's daemon has read by itself have snapshots of their own, which say nothing here; a document
    that one version lacks is found by the comparison with the table.
    """
    if old is None or new is None or not isinstance(old.version, LogVersion):
        return False
    return replaces(old.version, new.version) and not replaces(new.version, old.version)

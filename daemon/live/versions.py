"""The index versions that this process writes: all those of its pipelines that the registry names, kept in step.

A version that appears is written to beside the others from then on; one that is retired is let go; when readers are
given another version, only the names in the metrics change. What readers do not see holds up nobody: its model is not
waited for, and it is given up where it gets nowhere.
"""

import asyncio
import time
from collections.abc import Collection, Sequence

import structlog

from daemon.embedding.embedder import EmbeddingSpace
from daemon.errors import ConfigError, LivevecError, RetryLater, StopPipeline, StopProcess
from daemon.index import schema
from daemon.index.registry import FIRST_VERSION, IndexVersion, Versions, VersionTable, wanted
from daemon.live import mirror as mirrors
from daemon.live.dispatcher import Owner
from daemon.live.mirror import Mirror, Parts
from daemon.projection.build import check_columns
from daemon.settings import Pipeline, PostgresSource
from daemon.source.kafka.reader import Partition

_STUCK_S = 5.0
log = structlog.get_logger(__name__)


class LiveVersions:
    """All mirrors of a process; the owner of each.

    Args:
        parts: shared by them.
        owner: is told that a batch ended, or that a version that readers see cannot go on.
    """

    def __init__(self, parts: Parts, owner: Owner) -> None:
        self._parts = parts
        self._owner = owner
        self._registries = {p.name: Versions(parts.redis, p.name) for p in parts.config.pipelines}
        self._joined: dict[tuple[str, int], frozenset[Partition]] = {}
        self._turn = asyncio.Lock()
        self._given_up: list[tuple[Mirror, LivevecError]] = []
        self._by_topic: dict[str, list[Mirror]] = {}

    def all(self) -> list[Mirror]:
        return [mirror for mirrors in self._by_topic.values() for mirror in mirrors]

    def topics(self) -> list[str]:
        """The topics whose records the mirrors take."""
        return list(self._by_topic)

    def of_topic(self, topic: str) -> Sequence[Mirror]:
        """The mirrors that take a topic's records, as they are now."""
        return tuple(self._by_topic.get(topic, ()))

    def of_source(self, source: str) -> list[Mirror]:
        return [mirror for mirror in self.all() if mirror.pipeline.source == source]

    async def start(self) -> None:
        """Build the mirror of every registered version; the first of a pipeline is made as the configuration says.

        Raises:
            ConfigError: the configuration, or the version that readers see, does not fit the table or the model.
        """
        for pipeline in self._parts.config.pipelines:
            await self._check(pipeline)
            table = await self._parts.patience.call("redis", self._registries[pipeline.name].read)
            if table is None:
                _, space = await self._parts.embedders.get(self._parts.config.embedding)
                table = await self._restored(pipeline.name, [wanted(pipeline, space)], FIRST_VERSION)
            self._tell_differences(pipeline, table)
            await self._add(pipeline, table.version(), True, wait=True)
            await self._follow(pipeline, table)
        await self._parts.patience.call("redis", self.keep)

    async def follow(self, owned: Collection[Partition]) -> None:
        """Do what the registries say, and note there which of these partitions are written to which version.

        Raises:
            RetryLater: Redis is away.
        """
        async with self._turn:
            for pipeline in self._parts.config.pipelines:
                registry = self._registries[pipeline.name]
                self._give_up_stuck(pipeline)
                await self._note_given_up()
                table = await registry.read()
                if table is None:
                    # Redis lost it; where a position was there before, that tells so, too, and all else follows.
                    await self._restore(pipeline)
                    continue
                await self._follow(pipeline, table)
                await self._note(registry, pipeline, table, owned)
            used = {(mirror.version.model, mirror.version.dimension) for mirror in self.all()}
            await self._parts.embedders.keep_only(used)

    async def restore(self) -> None:
        """Put back what a Redis that went back may have lost: registry, indexes, aliases."""
        self._joined.clear()
        for pipeline in self._parts.config.pipelines:
            await self._restore(pipeline)
        await self.keep()

    async def keep(self) -> None:
        """Make every index anew that vanished, and let the aliases name what readers shall see."""
        for mirror in self.all():
            await schema.ensure(self._parts.redis, mirror.pipeline.name, mirror.version)
        for pipeline in self._parts.config.pipelines:
            await self._keep_alias(pipeline)

    # ---- the owner of the mirrors

    def batch_ended(self) -> None:
        self._owner.batch_ended()

    def failed(self, error: BaseException) -> None:
        self._owner.failed(error)

    def give_up(self, mirror: Mirror, error: LivevecError) -> None:
        """Let go of a version that readers do not see and that cannot go on; the registry learns it at the next look.

        Several of its batches may fail at once: the first of them is told.
        """
        if mirror.dispatcher.retired:
            return
        log.error(
            "index_version_given_up",
            pipeline=mirror.pipeline.name,
            version=mirror.version.number,
            error=str(error),
        )
        self._given_up.append((mirror, error))
        self._let_go(mirror)

    # ---- following the registry

    async def _keep_alias(self, pipeline: Pipeline) -> None:
        # Read in this order: where readers are given another version in between, the registry knows it.
        info = await schema.info(self._parts.redis, pipeline.name)
        index = info.name if info else None
        table = await self._registries[pipeline.name].read()
        for mirror in self._of(pipeline):
            shown = mirror.active if table is None else mirror.version.number == table.active
            if shown and index != mirror.writer.layout.index:
                await schema.point_alias(self._parts.redis, mirror.writer.layout)

    def _of(self, pipeline: Pipeline) -> list[Mirror]:
        return [mirror for mirror in self.all() if mirror.pipeline.name == pipeline.name]

    async def _check(self, pipeline: Pipeline) -> None:
        """Refuse a typo in daemon.toml at once, also where the index was made with other settings."""
        source = self._parts.config.source(pipeline.source)
        if isinstance(source, PostgresSource):
            reader = self._parts.readers[source.name]
            table = await self._parts.patience.call(reader.part, reader.schema, pipeline.table)
            columns = (*pipeline.columns, *(field.column for field in pipeline.metadata))
            check_columns(pipeline, table, columns)

    async def _restore(self, pipeline: Pipeline) -> None:
        mirrors = self._of(pipeline)
        active = next(mirror.version.number for mirror in mirrors if mirror.active)
        await self._restored(pipeline.name, [mirror.version for mirror in mirrors], active)

    async def _restored(self, name: str, versions: list[IndexVersion], active: int) -> VersionTable:
        registry = self._registries[name]
        return await self._parts.patience.call("redis", registry.restore, versions, active)

    async def _follow(self, pipeline: Pipeline, table: VersionTable) -> None:
        written = {version.number: version for version in table.written}
        mirrors = {mirror.version.number: mirror for mirror in self._of(pipeline)}
        given_up = {
            mirror.version.number for mirror, _ in self._given_up if mirror.pipeline.name == pipeline.name
        }
        for number, version in written.items():
            if number not in mirrors and number not in given_up:
                await self._try_to_add(pipeline, version, number == table.active)
        for number, mirror in mirrors.items():
            if number not in written and number != table.active:
                await self._remove(mirror)
        for mirror in sorted(self._of(pipeline), key=lambda mirror: mirror.version.number == table.active):
            if mirror.active != (mirror.version.number == table.active):
                mirror.show_as(not mirror.active)
                if mirror.active:
                    await schema.point_alias(self._parts.redis, mirror.writer.layout)
                    log.info("index_version", pipeline=pipeline.name, version=mirror.version.number)
        self._parts.metrics.active_version.labels(pipeline.name).set(table.active)

    async def _try_to_add(self, pipeline: Pipeline, version: IndexVersion, active: bool) -> None:
        """Write to a version from now on; one that cannot be written is told to the registry, and the others go on."""
        try:
            await self._add(pipeline, version, active, wait=False)
        except (ConfigError, StopPipeline, StopProcess) as error:
            log.error(
                "index_version_refused", pipeline=pipeline.name, version=version.number, error=str(error)
            )
            await self._registries[pipeline.name].fail(version.number, str(error))
        except RetryLater as error:
            # Tried again at the next look; until then the registry says that nothing is written to it from here.
            log.debug("index_version_postponed", pipeline=pipeline.name, error=str(error))

    async def _add(self, pipeline: Pipeline, version: IndexVersion, active: bool, *, wait: bool) -> None:
        mirror = await mirrors.build(pipeline, version, active, self._parts, self, wait=wait)
        self._by_topic.setdefault(self._parts.config.topic(pipeline), []).append(mirror)
        log.info("writing_index_version", pipeline=pipeline.name, version=version.number)

    def _give_up_stuck(self, pipeline: Pipeline) -> None:
        """Give up a version that readers do not see once it has waited alone for too long: it holds up every offset.

        At once, where its queue is full: it would hold up the records themselves.
        """
        limits = self._parts.config.batching
        limit_s = self._parts.config.retry.stuck_version_s_max
        mirrors = self._of(pipeline)
        # Where all wait, they wait for what they share.
        shared = any(mirror.active and mirror.dispatcher.stuck_s() > _STUCK_S for mirror in mirrors)
        now_s = time.monotonic()
        for mirror in mirrors:
            dispatcher = mirror.dispatcher
            if mirror.active or shared or dispatcher.stuck_s() <= _STUCK_S:
                mirror.stuck_alone_since_s = None
                continue
            if mirror.stuck_alone_since_s is None:
                mirror.stuck_alone_since_s = now_s
            stuck_s = now_s - mirror.stuck_alone_since_s
            full = dispatcher.waiting_changes >= limits.queue_changes_max
            full = full or dispatcher.waiting_bytes >= limits.queue_bytes_max
            if stuck_s > limit_s or full:
                self.give_up(
                    mirror,
                    RetryLater(
                        f"no change reached index version {mirror.version.number} for {_STUCK_S + stuck_s:.0f} s while "
                        f"the one that readers see goes on: does {mirror.version.model!r} answer? Then reindex again"
                    ),
                )

    async def _note_given_up(self) -> None:
        while self._given_up:
            mirror, error = self._given_up[0]
            await self._registries[mirror.pipeline.name].fail(mirror.version.number, str(error))
            self._given_up.pop(0)

    async def _remove(self, mirror: Mirror) -> None:
        self._let_go(mirror)
        await mirror.dispatcher.drained()
        log.info("left_index_version", pipeline=mirror.pipeline.name, version=mirror.version.number)

    def _let_go(self, mirror: Mirror) -> None:
        self._by_topic[self._parts.config.topic(mirror.pipeline)].remove(mirror)
        mirror.retire()

    async def _note(
        self, registry: Versions, pipeline: Pipeline, table: VersionTable, owned: Collection[Partition]
    ) -> None:
        topic = self._parts.config.topic(pipeline)
        mine = frozenset(partition for partition in owned if partition[0] == topic)
        mirrors = {mirror.version.number: mirror for mirror in self._of(pipeline)}
        for number in table.versions:
            key = (pipeline.name, number)
            if number not in mirrors:
                await registry.left(number, mine)
                self._joined.pop(key, None)
            elif mirrors[number].is_ready and self._joined.get(key) != mine:
                await registry.joined(number, mine)
                self._joined[key] = mine

    def _tell_differences(self, pipeline: Pipeline, table: VersionTable) -> None:
        """Say where daemon.toml asks for another index than there is: what is there goes on being kept fresh."""
        active, embedding = table.version(), self._parts.config.embedding
        same_model = (embedding.model, embedding.dimension) == (active.model, active.dimension)
        fingerprint = active.fingerprint if same_model else ""
        space = EmbeddingSpace(embedding.model, embedding.dimension, 0, fingerprint)
        differing = active.differences(wanted(pipeline, space))
        if not same_model:
            differing = [name for name in differing if name != "fingerprint"]
        self._parts.metrics.settings_differ.labels(pipeline.name).set(bool(differing))
        if differing:
            log.error(
                "settings_differ",
                pipeline=pipeline.name,
                version=active.number,
                settings=differing,
                remedy=f"livevec reindex {pipeline.name} makes the index that daemon.toml asks for; until then the "
                "one there is, is kept fresh as it was made",
            )

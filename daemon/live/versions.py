"""The index versions that this process writes: all those of its pipelines that the registry names, kept in step.

A version that appears is written to beside the others from then on; one that is retired is let go; when readers are
given another version, only the names in the metrics change.
"""

import asyncio
import time
from collections.abc import Callable, Collection

import structlog

from daemon.embedding.embedder import EmbeddingSpace
from daemon.errors import ConfigError, LivevecError, RetryLater, StopPipeline, StopProcess
from daemon.index import schema
from daemon.index.registry import FIRST_VERSION, IndexVersion, Versions, VersionTable, wanted
from daemon.live.mirror import Mirror, Parts, assemble
from daemon.projection.build import check_columns
from daemon.settings import Pipeline, PostgresSource
from daemon.source.kafka.reader import Partition

_STUCK_S = 5.0
log = structlog.get_logger(__name__)


class Mirrors:
    """All mirrors of a process.

    Args:
        parts: shared by them.
        on_change: a batch ended.
        on_failure: a mirror that readers see cannot go on.
    """

    def __init__(
        self, parts: Parts, on_change: Callable[[], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self._parts = parts
        self._on_change = on_change
        self._on_failure = on_failure
        self._registries = {p.name: Versions(parts.redis, p.name) for p in parts.config.pipelines}
        self._joined: dict[tuple[str, int], frozenset[Partition]] = {}
        self._turn = asyncio.Lock()
        self._given_up: list[tuple[Mirror, LivevecError]] = []
        self.by_topic: dict[str, list[Mirror]] = {}

    def all(self) -> list[Mirror]:
        return [mirror for mirrors in self.by_topic.values() for mirror in mirrors]

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
                first = wanted(pipeline, space)
                table = await self._restored(pipeline.name, [first], FIRST_VERSION)
            self._tell_differences(pipeline, table)
            active = table.version()
            await self._add(pipeline, active, True)
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
                while self._given_up:
                    mirror, error = self._given_up.pop()
                    await self._registries[mirror.pipeline.name].fail(mirror.version.number, str(error))
                table = await registry.read()
                if table is None:
                    continue  # Redis lost it: the position beside the data tells so, and `restore` follows
                await self._follow(pipeline, table)
                await self._note(registry, pipeline, table, owned)
            used = {(mirror.version.model, mirror.version.dimension) for mirror in self.all()}
            await self._parts.embedders.keep_only(used)

    async def restore(self) -> None:
        """Put back what a Redis that went back may have lost: registry, indexes, aliases."""
        self._joined.clear()
        for pipeline in self._parts.config.pipelines:
            mirrors = self._of(pipeline)
            active = next(mirror.version.number for mirror in mirrors if mirror.active)
            await self._restored(pipeline.name, [mirror.version for mirror in mirrors], active)
        await self.keep()

    async def keep(self) -> None:
        """Make every index anew that vanished, and let the aliases name what readers shall see."""
        for mirror in self.all():
            await schema.ensure(self._parts.redis, mirror.pipeline.name, mirror.version)
        for pipeline in self._parts.config.pipelines:
            await self._keep_alias(pipeline)

    async def _keep_alias(self, pipeline: Pipeline) -> None:
        # Read in this order: where readers are given another version in between, the registry knows it.
        named = await schema.index_named(self._parts.redis, pipeline.name)
        table = await self._registries[pipeline.name].read()
        for mirror in self._of(pipeline):
            shown = mirror.active if table is None else mirror.version.number == table.active
            if shown and named != mirror.writer.layout.index:
                await schema.point_alias(self._parts.redis, mirror.writer.layout)

    def _of(self, pipeline: Pipeline) -> list[Mirror]:
        return [mirror for mirror in self.all() if mirror.pipeline.name == pipeline.name]

    async def _check(self, pipeline: Pipeline) -> None:
        """A typo in daemon.toml is told at once, also where the index was made with other settings."""
        source = self._parts.config.source(pipeline.source)
        if isinstance(source, PostgresSource):
            reader = self._parts.readers[source.name]
            table = await self._parts.patience.call("source", lambda: reader.schema(pipeline.table))
            check_columns(
                pipeline, table, (*pipeline.columns, *(field.column for field in pipeline.metadata))
            )

    async def _restored(self, name: str, versions: list[IndexVersion], active: int) -> VersionTable:
        return await self._parts.patience.call(
            "redis", lambda: self._registries[name].restore(versions, active)
        )

    async def _follow(self, pipeline: Pipeline, table: VersionTable) -> None:
        written = {version.number: version for version in table.written}
        mirrors = {mirror.version.number: mirror for mirror in self._of(pipeline)}
        for number, version in written.items():
            if number not in mirrors:
                await self._try_to_add(pipeline, version, number == table.active)
        for number, mirror in mirrors.items():
            if number not in written and number != table.active:
                await self._remove(mirror)
        for mirror in sorted(self._of(pipeline), key=lambda one: one.version.number == table.active):
            if mirror.active != (mirror.version.number == table.active):
                mirror.show_as(not mirror.active)
                if mirror.active:
                    await schema.point_alias(self._parts.redis, mirror.writer.layout)
                    log.info("index_version", pipeline=pipeline.name, version=mirror.version.number)
        self._parts.metrics.active_version.labels(pipeline.name).set(table.active)

    async def _try_to_add(self, pipeline: Pipeline, version: IndexVersion, active: bool) -> None:
        """A version that cannot be written is given up, and told so; those that readers see go on."""
        limit_s = None if active else self._parts.config.retry.stuck_version_s_max
        try:
            async with asyncio.timeout(limit_s):
                await self._add(pipeline, version, active)
            return
        except (ConfigError, StopPipeline, StopProcess) as error:
            why = str(error)
        except TimeoutError:
            why = f"{version.model!r} did not answer for {limit_s:g} s; mend that, then reindex again"
        log.error("index_version_refused", pipeline=pipeline.name, version=version.number, error=why)
        await self._registries[pipeline.name].fail(version.number, why)

    async def _add(self, pipeline: Pipeline, version: IndexVersion, active: bool) -> None:
        found: list[Mirror] = []

        def failed(error: BaseException) -> None:
            mirror = found[0]
            if mirror.active or not isinstance(error, LivevecError):
                self._on_failure(error)
            else:
                self._give_up(mirror, error)

        mirror = await assemble(
            version.pipeline(pipeline), version, active, self._parts, self._on_change, failed
        )
        found.append(mirror)
        self.by_topic.setdefault(self._parts.config.topic(pipeline), []).append(mirror)
        log.info("writing_index_version", pipeline=pipeline.name, version=version.number)

    def _give_up_stuck(self, pipeline: Pipeline) -> None:
        """A version that readers do not see may wait for its own model only so long: it holds up every offset."""
        limit_s = self._parts.config.retry.stuck_version_s_max
        mirrors = self._of(pipeline)
        # Where all wait, they wait for what they share.
        shared = any(mirror.active and mirror.dispatcher.stuck_s() > _STUCK_S for mirror in mirrors)
        now_s = time.monotonic()
        for mirror in mirrors:
            if mirror.active or shared or mirror.dispatcher.stuck_s() <= _STUCK_S:
                mirror.stuck_alone_since_s = None
            elif mirror.stuck_alone_since_s is None:
                mirror.stuck_alone_since_s = now_s
            elif now_s - mirror.stuck_alone_since_s > limit_s:
                self._give_up(
                    mirror,
                    RetryLater(
                        f"no change reached index version {mirror.version.number} for {limit_s:g} s while the one that "
                        f"readers see goes on: does {mirror.version.model!r} answer? Then reindex again"
                    ),
                )

    def _give_up(self, mirror: Mirror, error: LivevecError) -> None:
        log.error(
            "index_version_given_up",
            pipeline=mirror.pipeline.name,
            version=mirror.version.number,
            error=str(error),
        )
        self._given_up.append((mirror, error))
        self._let_go(mirror)

    async def _remove(self, mirror: Mirror) -> None:
        self._let_go(mirror)
        await mirror.dispatcher.drained()
        log.info("left_index_version", pipeline=mirror.pipeline.name, version=mirror.version.number)

    def _let_go(self, mirror: Mirror) -> None:
        """Nothing waits for it any more: what it has not done holds up no offset."""
        self.by_topic[self._parts.config.topic(mirror.pipeline)].remove(mirror)
        mirror.dispatcher.retire()
        mirror.metrics.forget()

    async def _note(
        self, registry: Versions, pipeline: Pipeline, table: VersionTable, owned: Collection[Partition]
    ) -> None:
        topic = self._parts.config.topic(pipeline)
        mine = frozenset(partition for partition in owned if partition[0] == topic)
        numbers = {mirror.version.number for mirror in self._of(pipeline)}
        for number in table.versions:
            key = (pipeline.name, number)
            if number in numbers and self._joined.get(key) != mine:
                await registry.joined(number, mine)
                self._joined[key] = mine
            elif number not in numbers:
                await registry.left(number, mine)
                self._joined.pop(key, None)

    def _tell_differences(self, pipeline: Pipeline, table: VersionTable) -> None:
        """daemon.toml may ask for another index than there is: what is there goes on being kept fresh."""
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

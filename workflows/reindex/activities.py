"""The activities of a reindex that deal with the registry of index versions: plan, register, join, activate, drop."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from temporalio import activity

from daemon.core.document import DocumentBuilder
from daemon.embedding.embedder import EmbeddingSpace
from daemon.embedding.factory import make_embedder
from daemon.errors import ConfigError, RetryLater
from daemon.index import schema
from daemon.index.connection import Client, translated
from daemon.index.keyspace import Keyspace
from daemon.index.layout import Layout, pipeline_key
from daemon.index.registry import IndexVersion, Versions, VersionTable
from daemon.projection.build import check_columns, document_builder
from daemon.settings import IndexSettings, Pipeline, PostgresSource
from daemon.source.kafka.dead_letter_reader import read_partitions
from daemon.source.postgres.reader import PostgresReader
from daemon.verify.pace import Interruption
from workflows.interruption import interruptible
from workflows.progress import Beat
from workflows.reindex.contract import (
    Activated,
    Activation,
    Dropped,
    GapWatch,
    Joined,
    Left,
    PlanOrder,
    Registering,
    ReindexPlan,
    VersionOf,
    Watched,
    WritersLook,
)
from workflows.resources import Resources

T = TypeVar("T")
_LOOK_S = 0.25
_LOOKS = 2400
"""Looks of one activity where nothing changes: ten minutes of them."""
_WATCH_S = 1.0
_WATCHES = 3600
_PAUSE_S = 0.002
"""Between two steps of removing keys, which others' commands wait for."""


@dataclass(frozen=True)
class _Registry:
    """The index versions of one pipeline, and the connection to them."""

    pipeline: Pipeline
    client: Client
    versions: Versions

    async def table(self) -> VersionTable:
        """Read the registry; raise RetryLater while Redis has lost it: the daemon puts it back."""
        table = await self.versions.read()
        if table is None:
            raise RetryLater(
                f"Redis has lost the registry of {self.pipeline.name!r}; `livevec run` puts it back", 1.0
            )
        return table

    async def writable(self, number: int) -> VersionTable:
        """Read the registry; raise ConfigError where that version is not written to, and will not be."""
        table = await self.table()
        name = self.pipeline.name
        if number in table.failed:
            raise ConfigError(
                f"`livevec run` cannot write to index version {number} of {name!r}: {table.failed[number]}"
            )
        if number not in table.versions or number in table.retired:
            raise ConfigError(
                f"index version {number} of {name!r} is not registered any more: Redis went back to before it was, or "
                f"somebody retired it; begin again: `livevec reindex {name}`"
            )
        return table

    async def gaps(self) -> dict[str, str]:
        """Return when each reason for a reconcile last came up."""
        with translated():
            gaps = await cast(Any, self.client).hgetall(pipeline_key(self.pipeline.name, "gaps"))
        return {reason.decode(): since.decode() for reason, since in gaps.items()}


class ReindexActivities:
    """What a reindex has done to the registry; all share the worker's resources."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._call = resources.patience.call

    @activity.defn(name="reindex_plan")
    async def plan(self, order: PlanOrder) -> ReindexPlan:
        """Find out whether the new version can be made, and what it is to be.

        Raises:
            ConfigError: the pipeline mirrors no table, a setting cannot be, or nothing would differ.
            StopProcess: the model is missing, or of another dimension.
        """
        config = self._resources.config
        registry = self._registry(order.pipeline)
        table = await self._call("redis", registry.versions.known)
        active = table.version()
        wanted = checked(registry.pipeline, order.changes.applied(active))
        wanted = replace(wanted, number=0, **await self._space(wanted, active, order))
        differences = tuple(active.differences(wanted))
        if not differences and not order.force:
            raise ConfigError(
                f"index version {active.number} of {order.pipeline!r} is as it is asked for: nothing would differ; "
                "--force builds it anew all the same"
            )
        await self._check_table(wanted, registry.pipeline)
        return ReindexPlan(
            old=active,
            wanted=wanted,
            differences=differences,
            leftovers=tuple(sorted(table.versions.keys() - {active.number})),
            recall_min=config.reindex.recall_min,
            grace_s=config.reindex.grace_s,
            last_readers_s=config.reindex.last_readers_s,
        )

    @activity.defn(name="reindex_register")
    async def register(self, order: Registering) -> IndexVersion:
        """Put the version into the registry; another attempt finds it there."""
        registry = self._registry(order.pipeline)
        table = await self._call("redis", registry.table)
        for version in table.written:
            if version.number != table.active and not version.differences(order.wanted):
                return version
        return await self._call("redis", registry.versions.register, order.wanted)

    @activity.defn(name="reindex_join")
    async def join(self, look: WritersLook) -> Joined:
        """Look until the changes of every partition are written to the version, or until the missing ones change.

        Raises:
            ConfigError: the daemon cannot write to it; or the topic does not exist.
        """
        partitions = await self._partitions(look.pipeline)

        async def once(registry: _Registry) -> Joined:
            await registry.writable(look.number)
            # Read before the barrier of the backfill begins: what the log lacked before does not matter.
            gaps = await registry.gaps()
            writers = await registry.versions.writers(look.number)
            missing = (f"{topic}/{number}" for topic, number in partitions if (topic, number) not in writers)
            return Joined(missing=tuple(missing), gaps=gaps)

        return await self._looked(look, once, lambda joined: joined.missing)

    @activity.defn(name="reindex_leave")
    async def leave(self, look: WritersLook) -> Left:
        """Retire the version, and look until no daemon writes to it, or until those that do change.

        Raises:
            ConfigError: it is the one that readers see.
        """
        partitions = await self._partitions(look.pipeline)

        async def once(registry: _Registry) -> Left:
            table = await registry.table()
            _refuse_active(table, look.pipeline, look.number)
            if look.number in table.versions and look.number not in table.retired:
                await registry.versions.retire(look.number)
            writers = await registry.versions.writers(look.number)
            writing = (f"{topic}/{number}" for topic, number in partitions if (topic, number) in writers)
            return Left(writing=tuple(writing))

        return await self._looked(look, once, lambda left: left.writing)

    @activity.defn(name="reindex_watch")
    async def watch(self, watch: GapWatch) -> Watched:
        """Return when the version is not known to be whole any more, or after an hour.

        It raises ConfigError where the daemon cannot write to it any more.
        """

        async def work(interruption: Interruption) -> Watched:
            registry = self._registry(watch.pipeline)
            for _ in range(_WATCHES):
                await self._call("redis", registry.writable, watch.number)
                if gap := _gap(watch.gaps, await self._call("redis", registry.gaps)):
                    return Watched(gap=gap)
                if await interruption.wait(_WATCH_S):
                    break
            return Watched()

        return await interruptible(work, lambda: ())

    @activity.defn(name="reindex_activate")
    async def activate(self, order: Activation) -> Activated:
        """Give the version to readers; they see it as one step. Where the log lacked something: do nothing.

        Raises:
            ConfigError: it is not written to any more, or readers see another version than was thought.
        """
        registry = self._registry(order.pipeline)
        table = await self._call("redis", registry.writable, order.number)
        if table.active not in (order.number, order.instead_of):
            raise ConfigError(
                f"readers of {order.pipeline!r} see index version {table.active}, not {order.instead_of}: Redis "
                "went back, or somebody else gave them another; look at `livevec reindex status`"
            )
        gaps = await self._call("redis", registry.gaps)
        if gap := _gap(order.gaps, gaps):
            return Activated(gap=gap, gaps=gaps)
        version = table.versions[order.number]
        layout = await self._call("redis", schema.ensure, registry.client, order.pipeline, version)
        await self._call("redis", registry.versions.activate, order.number)
        await self._call("redis", schema.point_alias, registry.client, layout)
        return Activated(gaps=gaps)

    @activity.defn(name="reindex_drop")
    async def drop(self, version: VersionOf) -> Dropped:
        """Remove a version that no daemon writes to: its index, its keys in small steps, its place in the registry.

        Raises:
            ConfigError: it is the one that readers see.
        """
        removed = 0

        async def work(_: Interruption) -> Dropped:
            nonlocal removed
            await self._resources.forget(version.pipeline, version.number)
            registry = self._registry(version.pipeline)
            table = await self._call("redis", registry.table)
            _refuse_active(table, version.pipeline, version.number)
            layout = Layout(version.pipeline, version.number)
            await self._call("redis", schema.drop, registry.client, layout)
            while count := await self._remove_keys(registry.client, layout):
                removed += count
            await self._call("redis", registry.versions.forget, version.number)
            return Dropped(keys=removed)

        return await interruptible(work, lambda: (None, Beat(done=removed)))

    async def _remove_keys(self, client: Client, layout: Layout) -> int:
        """Walk once through all keys, and remove them; what was written meanwhile is for the next walk."""
        keyspace = Keyspace(client, layout)
        removed = 0
        async for step in keyspace.steps(self._resources.patience):
            if step.keys:
                await self._call("redis", keyspace.remove, step.keys)
                removed += len(step.keys)
                await asyncio.sleep(_PAUSE_S)
        return removed

    async def _space(self, wanted: IndexVersion, active: IndexVersion, order: PlanOrder) -> dict[str, Any]:
        """Return fingerprint and dimension, as the embedder says."""
        config = self._resources.config
        unknown = wanted.model != active.model and order.changes.dimension is None
        embedder = make_embedder(wanted.embedding(config.embedding), any_dimension=unknown)
        try:
            space: EmbeddingSpace = await self._call(f"embedder {wanted.model}", embedder.start)
        finally:
            await embedder.close()
        if wanted.model == active.model and wanted.dimension == active.dimension:
            # A model that was replaced under its name: the daemon cannot go on with the old version either.
            active.check_space(space, order.pipeline)
        return {"fingerprint": space.fingerprint, "dimension": space.dimension}

    async def _check_table(self, wanted: IndexVersion, pipeline: Pipeline) -> None:
        source = self._resources.config.source(pipeline.source)
        assert isinstance(source, PostgresSource)
        reader = PostgresReader(source)
        try:
            table = await self._call(reader.part, reader.schema, pipeline.table)
        finally:
            await reader.close()
        settings = wanted.pipeline(pipeline)
        builder: DocumentBuilder = document_builder(settings, wanted)
        check_columns(settings, table, builder.columns)

    async def _partitions(self, pipeline: str) -> list[tuple[str, int]]:
        config = self._resources.config
        topic = config.topic(config.pipeline(pipeline))
        count = await self._call("kafka", asyncio.to_thread, read_partitions, config.kafka, topic)
        if not count:
            raise ConfigError(f"the topic {topic} does not exist; `livevec connector apply` makes it")
        return [(topic, number) for number in range(count)]

    async def _looked(
        self,
        look: WritersLook,
        once: Callable[[_Registry], Awaitable[T]],
        waiting_for: Callable[[T], tuple[str, ...]],
    ) -> T:
        """Return what a look shows, once nothing is waited for any more, or something else than was seen last."""

        async def work(interruption: Interruption) -> T:
            registry = self._registry(look.pipeline)
            looks = 0
            while True:
                result = await self._call("redis", once, registry)
                waiting = waiting_for(result)
                looks += 1
                is_over = not waiting or waiting != look.seen or looks >= _LOOKS
                if is_over or await interruption.wait(_LOOK_S):
                    return result

        return await interruptible(work, lambda: ())

    def _registry(self, name: str) -> _Registry:
        config, client = self._resources.config, self._resources.redis
        pipeline = config.pipeline(name)
        if not isinstance(config.source(pipeline.source), PostgresSource):
            raise ConfigError(
                f"pipeline {name!r} mirrors a topic of events, and no table from which another index could be filled; "
                "give a new pipeline of the same topic the new settings, and let readers search that one"
            )
        return _Registry(pipeline, client, Versions(client, name))


def _refuse_active(table: VersionTable, pipeline: str, number: int) -> None:
    if table.active == number:
        raise ConfigError(
            f"index version {number} of {pipeline!r} is what readers see, and stays: Redis went back to before they "
            f"were given another, or somebody gave them this one; look at `livevec reindex status {pipeline}`"
        )


def _gap(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """Return what the log lacked since, in words; empty: nothing."""
    if before is None:
        return ""
    return ", ".join(sorted(reason for reason, since in now.items() if before.get(reason) != since))


def checked(pipeline: Pipeline, wanted: IndexVersion) -> IndexVersion:
    """Check each setting as if it were in daemon.toml; raise ConfigError, which names it, where one is not allowed."""
    try:
        names = ("m", "ef_construction", "metric", "type")
        IndexSettings.model_validate({name: getattr(wanted, name) for name in names})
        wanted.pipeline(pipeline)
    except ValidationError as error:
        places = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors()]
        problems = [f"{place or 'settings'}: {message}" for place, message in places]
        raise ConfigError("; ".join(problems)) from None
    if wanted.dimension < 1:
        raise ConfigError(f"dimension: {wanted.dimension} is no length of a vector")
    return wanted

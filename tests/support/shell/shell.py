"""One daemon over the servers: started, killed, stopped, started again, until all is at rest."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import numpy as np

from daemon.core.vectors import decode
from daemon.index.layout import Layout, pipeline_key, positions_key
from daemon.index.registry import IndexVersion
from daemon.live.service import Service
from daemon.settings import (
    BatchingSettings,
    Config,
    EmbeddingSettings,
    KafkaSettings,
    MetadataField,
    Pipeline,
    PostgresSource,
    RedisSettings,
    RetrySettings,
)
from daemon.source.kafka.reader import Partition
from tests.support.shell import clock
from tests.support.shell.clock import VirtualLoop
from tests.support.shell.embedder import vector
from tests.support.shell.process import Process
from tests.support.shell.servers import FakeEdges, Servers

T = TypeVar("T")
PIPELINE = "docs"
MODEL = "minilm"
DIMENSION = 4
SETTLES_WITHIN_S = 600.0
_LOOK_S = 0.05


def configuration(**sections: Any) -> Config:
    """One pipeline over the table of `tests.support.shell.postgres`; sections replace those of the default."""
    source = PostgresSource(name="shop", dsn="postgresql://fake.invalid/shop")
    pipeline = Pipeline(
        name=PIPELINE,
        source="shop",
        table="public.docs",
        text="{text}",
        metadata=(MetadataField(column="n", type="numeric"),),
    )
    defaults: dict[str, Any] = {
        "kafka": KafkaSettings(bootstrap_servers="fake.invalid:9092"),
        "redis": RedisSettings(url="redis://fake.invalid"),
        "embedding": EmbeddingSettings(url="fake.invalid:8001", model=MODEL, dimension=DIMENSION),
        "batching": BatchingSettings(),
        "retry": RetrySettings(),
        "sources": (source,),
        "pipelines": (pipeline,),
    }
    return Config(**{**defaults, **sections})


class Shell:
    """A daemon that may have several lives, one after the other.

    Args:
        loop: on virtual time.
        servers: that it uses.
        config: of the next start.

    Attributes:
        process: the present life, or the last one.
        service: of that life.
        edges: of that life.
    """

    def __init__(self, loop: VirtualLoop, servers: Servers, config: Config) -> None:
        self.loop = loop
        self.servers = servers
        self.config = config
        self.process: Process
        self.service: Service
        self.edges: FakeEdges
        self._run: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._run is not None and not self._run.done()

    @property
    def failure(self) -> BaseException | None:
        """What ended this life."""
        if self._run is None or not self._run.done() or self._run.cancelled():
            return None
        return self._run.exception()

    def start(self) -> None:
        assert not self.running, "it runs already"
        self.process = Process()
        self.edges = self.servers.edges(self.process)
        self.service = Service(self.config, self.edges)
        self._run = self.process.run(self.loop, self.service.run())

    def die(self) -> None:
        """kill -9; see `Process.die`. May be called from within the process."""
        self.process.die(self.loop)

    async def kill(self) -> None:
        self.die()
        await self.process.gone()

    async def stop(self) -> None:
        """SIGTERM: drain, commit, end. Nothing may be left of the process then.

        Raises:
            LivevecError: what the process ended with.
        """
        assert self._run is not None
        if self.running:
            await asyncio.sleep(0)
            self.edges.stop.set()
        await asyncio.wait([self._run])
        await self._no_task_is_left()
        self._run.result()

    async def _no_task_is_left(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        left = self.process.left()
        assert not left, "the process has ended and left these: " + ", ".join(map(repr, left))

    @property
    def ended(self) -> bool:
        """Whether this life is over, by a kill or by itself."""
        return self.process.dead or not self.running

    async def ensure_started(self) -> None:
        """Begin another life where the last is over.

        Raises:
            LivevecError: the last one ended by itself, on this failure.
        """
        if not self.ended:
            return
        await self.process.gone()
        if self.failure is not None:
            raise self.failure
        self.start()

    async def restart(self) -> None:
        await self.kill()
        self.start()

    # ---- until something is so

    async def until(
        self, condition: Callable[[], object], what: str = "", within_s: float = SETTLES_WITHIN_S
    ) -> None:
        """Look now and then; time passes meanwhile.

        Raises:
            AssertionError: it is not so in time, or the process has ended.
        """
        ends_at_s = self.loop.time() + within_s
        while not condition():
            assert not self.ended, f"the process has ended: {self.failure!r}"
            assert self.loop.time() < ends_at_s, f"not so after {within_s:g} s: {what or condition}"
            await asyncio.sleep(_LOOK_S)

    async def settled(self, within_s: float = SETTLES_WITHIN_S) -> None:
        """Wait until every record of every topic is acknowledged."""
        await self.until(lambda: not self.unacknowledged(), "all records are acknowledged", within_s)

    def unacknowledged(self) -> dict[Partition, tuple[int, int]]:
        """Of each partition that is behind: its position beside the data, and its end."""
        key = positions_key(self.config.kafka.group_id, "0")
        stored = self.servers.redis.keyspace.hash(key)
        behind = {}
        for (topic, number), log in self.servers.broker.logs.items():
            text = stored.get(f"{topic}/{number}".encode(), b"0:0")
            position = max(0, int(text.partition(b":")[2]))
            if max(position, log.first) < log.end:
                behind[topic, number] = position, log.end
        return behind

    def uncommitted(self) -> dict[Partition, tuple[int, int]]:
        """Of each partition that is behind: what the group has committed, and its end."""
        broker = self.servers.broker
        committed = broker.group(self.config.kafka.group_id).committed
        ends = {partition: log.end for partition, log in broker.logs.items()}
        return {p: (committed.get(p, 0), end) for p, end in ends.items() if committed.get(p, 0) < end}

    # ---- what there is

    def documents(self, pipeline: str = PIPELINE, version: int | None = None) -> dict[str, tuple[str, int]]:
        """See `documents`."""
        return documents(self.servers, pipeline, version)

    def outcomes(self, pipeline: str = PIPELINE) -> Mapping[str, float]:
        """Changes of this life by outcome."""
        metrics = self.service.metrics
        samples = [sample for family in metrics.registry.collect() for sample in family.samples]
        return {
            sample.labels["outcome"]: sample.value
            for sample in samples
            if "outcome" in sample.labels
            and sample.labels.get("pipeline") == pipeline
            and sample.name.endswith("_total")
        }

    def reconcile_reasons(self, pipeline: str = PIPELINE) -> set[str]:
        return {name.decode() for name in self.servers.redis.keyspace.hash(f"lv:{pipeline}:reconcile")}


def documents(servers: Servers, pipeline: str, version: int | None = None) -> dict[str, tuple[str, int]]:
    """What readers find: text and number by document id.

    Args:
        version: of the index; None: the one that the alias names.

    Raises:
        AssertionError: a document is torn, or its vector is not its text's.
    """
    if version is None:
        version = int(servers.redis.aliases[pipeline].rpartition(":")[2])
    layout, space = Layout(pipeline, version), servers.redis.keyspace
    model = _model(servers, pipeline, version)
    found: dict[str, tuple[str, int]] = {}
    chunks = [key for key in space.names() if key.startswith(layout.documents_prefix)]
    for key in space.names():
        if not key.startswith(layout.bookkeeping_prefix):
            continue
        identifier = layout.identifier(key)
        bookkeeping, stem = space.hash(key), layout.keys(identifier)[2]
        mine = [chunk for chunk in chunks if chunk.rpartition(":")[0] == stem]
        count = int(bookkeeping.get(b"n", b"0"))
        assert len(mine) == count, (
            f"document {identifier} has {len(mine)} chunks, its bookkeeping says {count}"
        )
        for chunk in mine:
            hash = space.hash(chunk)
            text = hash[b"text"].decode()
            given = decode([hash[b"embedding"]], "FLOAT32")[0]
            assert np.array_equal(given, vector(model, text, len(given))), (
                f"{chunk} has another text's vector"
            )
            assert identifier not in found, "rows of these tests have one chunk"
            found[identifier] = text, int(hash[b"n"])
        chunks = [chunk for chunk in chunks if chunk not in mine]
    assert not chunks, f"chunks without a document: {chunks}"
    return found


def _model(servers: Servers, pipeline: str, version: int) -> str:
    record = servers.redis.keyspace.hash(pipeline_key(pipeline, "versions")).get(str(version).encode())
    assert record is not None, f"the registry of {pipeline} has no version {version}"
    return IndexVersion.decode(record).model


def run(
    main: Callable[[Shell], Coroutine[Any, Any, T]],
    config: Config | None = None,
    *,
    partitions: int = 2,
    record: bool = False,
    seed: int = 1,
) -> T:
    """Run a test on a loop of its own, with a shell that is not started yet and killed at the end."""
    config = config or configuration()
    random.seed(seed)

    async def whole(loop: VirtualLoop) -> T:
        servers = Servers(config, random.Random(seed), partitions, record)
        shell = Shell(loop, servers, config)
        try:
            return await main(shell)
        finally:
            if shell.running:
                await shell.kill()

    return clock.run(whole)

"""What the workflows do to the index: backfills where a reconcile is due, dead letters that are tried again.

The steps are those of `workflows.backfill`, through the real projection, copier and writer; what Temporal does is done
here in a loop. The worker is a process of its own: it may be killed, and begins the step anew.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from unittest.mock import patch

from daemon.core.version import LogVersion, SnapshotVersion, decode, replaces
from daemon.errors import ConfigError, RejectRow, RetryLater
from daemon.index.durability import Durability
from daemon.index.layout import document_id, document_key, pipeline_key
from daemon.patience import Patience
from daemon.projection import build
from daemon.projection.build import Projection, opened
from daemon.source.kafka.dead_letters import DeadLetterTopic
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from daemon.verify.pace import Interruption
from daemon.verify.refill import Copied, Copier
from tests.support.shell.clock import VirtualLoop
from tests.support.shell.letters import Letter
from tests.support.shell.process import Process
from tests.support.shell.servers import FakeEdges
from tests.support.shell.shell import Shell
from workflows.backfill.contract import CopyOrder

_LOOK_S = 0.25
_PATIENCE_S = 5.0


@dataclass
class Backfill:
    """How far a backfill is: what Temporal would remember.

    Attributes:
        marks: why a reconcile was due when it began, and since when.
        begun: what its barrier waits for.
        first: the snapshot that its end sweeps with.
        copied: how far its rows are copied.
    """

    marks: dict[str, float] | None = None
    begun: int | None = None
    first: SnapshotVersion | None = None
    copied: Copied | None = None


class Worker:
    """`livevec worker` for the pipeline of a shell.

    Args:
        shell: whose configuration and servers it uses.
        rows_per_read: of a backfill.

    Attributes:
        with_barrier, with_sweep: rules that a test may switch off.
        backfills: ended so far.
    """

    def __init__(self, loop: VirtualLoop, shell: Shell, rows_per_read: int = 2) -> None:
        self.with_barrier = True
        self.with_sweep = True
        self.backfills = 0
        self.backfill: Backfill | None = None
        self._loop = loop
        self._shell = shell
        self._rows_per_read = rows_per_read
        self._tried: set[int] = set()
        self._wanted = False
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._process = Process()
        self._task = self._process.run(self._loop, self._run(FakeEdges(self._shell.servers, self._process)))

    def die(self) -> None:
        if self._process is not None:
            self._process.die(self._loop)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.die(self._loop)
            await self._process.gone()
            self._process = None

    def want_backfill(self) -> None:
        """Somebody asks for one: whatever runs begins again, since what it read may be of another time."""
        self._wanted = True
        self.backfill = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do.

        Raises:
            Exception: what it ended with.
        """
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()
        letters = self._shell.servers.letters.letters
        return not (
            self._wanted
            or self.backfill
            or len(self._tried) < len(letters)
            or self._shell.reconcile_reasons()
        )

    async def _run(self, edges: FakeEdges) -> None:
        _EDGES.set(edges)
        [pipeline] = self._shell.config.pipelines
        registry = pipeline_key(pipeline.name, "versions")
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._shell.servers.redis.keyspace.there(registry):
                continue  # no daemon has made the index yet, or Redis has lost it and the daemon puts it back
            try:
                if self._wanted or self.backfill or self._shell.reconcile_reasons():
                    await self._backfill_step(edges)
                await self._try_letters(edges)
            except RetryLater:
                continue
            except ConfigError as error:
                if "has no index yet" not in str(error):
                    raise

    # ---- backfills

    async def _backfill_step(self, edges: FakeEdges) -> None:
        """Go on from where it is; a step that failed is begun again by the next call."""
        if self.backfill is None:
            self.backfill, self._wanted = Backfill(), False
        state = self.backfill
        async with self._opened(edges) as projection:
            call = projection.patience.call
            if state.marks is None:
                await call("redis", projection.ensure_index)
                state.marks = await call("redis", projection.writer.reconcile_reasons)
            if state.first is None and not self.with_barrier:
                state.first = await call("source", projection.reader.snapshot)
            if state.first is None:
                if state.begun is None:
                    state.begun = await call("source", projection.reader.barrier_begun)
                passed = await call("source", projection.reader.barrier_passed, state.begun)
                if not isinstance(passed, SnapshotVersion):
                    return
                state.first = passed
            while state.copied is None or not state.copied.ended:
                await self._copy(projection, state)
            await self._close(projection, state)
        if self.backfill is state:
            self.backfill = None
            self.backfills += 1

    async def _copy(self, projection: Projection, state: Backfill) -> None:
        order = CopyOrder(
            pipeline=projection.pipeline.name,
            version=projection.version.number,
            table="",
            where=None,
            after=None,
            inclusive=False,
            until=None,
            rate=None,
            rows_per_read=self._rows_per_read,
            limit_s=30.0,
        )
        begun = state.copied or Copied(after=None, rows_per_read=self._rows_per_read)
        durability = await projection.patience.call(
            "redis", Durability.begin, projection.client, projection.config.redis
        )
        copier = Copier(projection, projection.lane, durability, order, begun)
        try:
            await copier.run(Interruption())
        finally:
            state.copied = copier.copied

    async def _close(self, projection: Projection, state: Backfill) -> None:
        assert state.first is not None
        durability = await Durability.begin(projection.client, projection.config.redis)
        if self.with_sweep:
            await projection.writer.raise_floors(state.first)
            await projection.writer.sweep(state.first)
        await durability.reached()
        await projection.writer.reconciled(state.marks or {})

    # ---- dead letters

    async def _try_letters(self, edges: FakeEdges) -> None:
        letters = self._shell.servers.letters.letters
        due = [number for number in range(len(letters)) if number not in self._tried]
        if not due:
            return
        async with self._opened(edges) as projection:
            for number in due:
                if await self._try(projection, letters[number]):
                    self._tried.add(number)

    async def _try(self, projection: Projection, letter: Letter) -> bool:
        """See `workflows.retry.trials.RowTrials`; a row that is refused again becomes another letter."""
        text = letter.headers["livevec.version"]
        version = decode(text) if text else None
        [stored] = await projection.patience.call("redis", projection.writer.lookup, [letter.document])
        if version is not None and stored is not None and not replaces(version, stored.version):
            return True
        key = document_key(letter.document, len(projection.table.key))
        [found] = await projection.patience.call("source", projection.rows.reread_each, [key])
        assert not isinstance(found, RejectRow)
        snapshot, row = found
        if isinstance(version, LogVersion) and version.era == snapshot.era and not snapshot.sees(version.xid):
            return False
        await projection.lane.project([(document_id(key), snapshot, row)])
        return True

    # ---- parts

    def _opened(self, edges: FakeEdges) -> "_Opened":
        return _Opened(self._shell, edges)


class _Opened:
    """`daemon.projection.build.opened` over the fakes."""

    def __init__(self, shell: Shell, edges: FakeEdges) -> None:
        config = shell.config
        [pipeline] = config.pipelines
        metrics = Metrics()
        topic = DeadLetterTopic(
            edges.dead_letters(config.kafka),  # type: ignore[arg-type]
            config.kafka.dead_letter_topic(pipeline.name),
            pipeline.name,
            pipeline.keep_bytes_in_dead_letters,
            ("id",),
        )
        patience = Patience(config.retry, Health(metrics), _PATIENCE_S)
        self._opened = opened(config, pipeline, patience=patience, metrics=metrics, dead_letters=topic)

    async def __aenter__(self) -> Projection:
        return await self._opened.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self._opened.__aexit__(*error)  # type: ignore[arg-type]


_EDGES: "ContextVar[FakeEdges]" = ContextVar("edges")


@contextmanager
def reached_through_edges() -> Iterator[None]:
    """While this lasts, `opened` connects through the edges of the worker that calls it."""
    with (
        patch.object(build, "connect", lambda settings: _EDGES.get().redis(settings)),
        patch.object(build, "PostgresReader", lambda settings: _EDGES.get().source(settings)),
        patch.object(build, "make_embedder", lambda settings: _EDGES.get().embedder(settings)),
    ):
        yield

"""What waits of one index version, and what runs: asks the policy when to close a batch, and hands it over.

Four kinds of work run side by side, so that a live change never waits for a slower kind:
- batches of changes whose rows are known, closed by the policy;
- hints, whose rows are read from the source first, and which wait for the source where it is away;
- sweeps after a TRUNCATE, which take as long as the index is large;
- refusals: records that could not be decoded, on their way to the dead letters.
All of them count as waiting until they are acknowledged, so that what is full pauses the partitions.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol

import structlog

from daemon.core.batching import Close, Deadline, Policy, Running
from daemon.core.change import Operation, Outcome
from daemon.core.queue import ChangeQueue, Item
from daemon.core.work import Work
from daemon.errors import StopPipeline
from daemon.projection.projector import Projector
from daemon.telemetry.metrics import PipelineMetrics

INVISIBLE_PAUSE_S = 0.02
"""How long to wait before a row is read again whose change was not visible yet."""
_CALM_POLL_S = 0.5
log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Whom a part of the shell tells what it cannot decide alone; at the top, the process."""

    def batch_ended(self) -> None:
        """Queues may have room again."""
        ...

    def failed(self, error: BaseException) -> None:
        """The work cannot go on."""
        ...


class Kind(Enum):
    BATCH = "batch"
    REREAD = "reread"
    SWEEP = "sweep"
    REFUSAL = "refusal"


_BESIDE = {Kind.REREAD: (2, 500), Kind.SWEEP: (1, 1), Kind.REFUSAL: (1, 1)}
"""Most tasks of a kind at once, and most items of each, beside the batches."""


class Dispatcher:
    """Runs the work of one index version.

    Args:
        projector: does the work.
        policy: decides about batches.
        batch_max: most items in one.
        in_flight_max: batches between closing and acknowledgement.
        metrics: of the pipeline.
        owner: is told that a batch ended, or what ended the work for good.
    """

    def __init__(
        self,
        projector: Projector,
        policy: Policy,
        batch_max: int,
        in_flight_max: int,
        metrics: PipelineMetrics,
        owner: Owner,
    ) -> None:
        self.launched = 0
        """Batches so far."""
        self.stopped: StopPipeline | None = None
        self.retired = False
        self._projector = projector
        self._policy = policy
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._metrics = metrics
        self._owner = owner
        self._queues = {kind: ChangeQueue() for kind in Kind}
        self._invisible = 0
        self._running: dict[asyncio.Task[None], tuple[Kind, Sequence[Item]]] = {}
        self._counts: Counter[Kind] = Counter()
        self._embedding: dict[asyncio.Task[None], Running] = {}
        self._moved_at_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._overloaded = False

    # ---- what the mirror hands over

    def put(self, item: Item) -> None:
        """Take a change; `pump` starts its work.

        A stopped pipeline leaves it unacknowledged; a retired one lets it go.
        """
        if self.stopped is not None or self.retired:
            self._give_up([item])
            return
        if self._idle.is_set():
            self._idle.clear()
            self._move()
        if item.refused is not None:
            kind = Kind.REFUSAL
        elif item.change.operation is Operation.TRUNCATE:
            kind = Kind.SWEEP
        elif self._projector.is_hint(item.change, time.time()):
            kind = Kind.REREAD
        else:
            kind = Kind.BATCH
        self._queues[kind].put(item)

    def pump(self) -> None:
        """Start whatever may run now."""
        if self.stopped is None and not self.retired:
            self._close_batches()
            for kind, (tasks_max, items_max) in _BESIDE.items():
                while len(self._queues[kind]) and self._counts[kind] < tasks_max:
                    self._launch(kind, self._queues[kind].take(min(items_max, self._batch_max)))
        self._show()

    # ---- what the owner asks and says

    @property
    def waiting_changes(self) -> int:
        """Records that wait: for a batch, for the source, for a sweep, or for the dead letters."""
        return sum(queue.changes for queue in self._queues.values()) + self._invisible

    @property
    def waiting_bytes(self) -> int:
        """Memory that they take, estimated."""
        return sum(queue.size_bytes for queue in self._queues.values())

    async def drained(self) -> None:
        """Wait until nothing waits and nothing runs."""
        await self._idle.wait()

    def stuck_s(self) -> float:
        """Return for how long there has been work of which none was finished."""
        return 0.0 if self._idle.is_set() else time.monotonic() - self._moved_at_s

    def abandon(self) -> None:
        """Forget what waits and cancel what runs; its records were not acknowledged and will be read again."""
        for queue in self._queues.values():
            self._give_up(queue)
        self._queues = {kind: ChangeQueue() for kind in Kind}
        for task in self._running:
            task.cancel()
        self._rest()

    def fail(self, error: BaseException) -> None:
        """Tell the owner what ended the work for good; a table that does not fit any more stops this pipeline."""
        if isinstance(error, StopPipeline):
            # Nothing more is taken; what waits is not acknowledged, and is read again after a restart.
            self.stopped = error
            self.abandon()
        self._owner.failed(error)

    def retire(self) -> None:
        """Take no part any more: what waits and what runs is let go, and holds up no offset."""
        self.retired = True
        self.abandon()

    # ---- running

    def _close_batches(self) -> None:
        """Close batches as long as the policy says so; then come back when it wants to be asked again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue = self._queues[Kind.BATCH]
        while len(queue) and self._counts[Kind.BATCH] < self._in_flight_max:
            now_s = time.time()
            waiting = queue.waiting(self._batch_max)
            decision = self._policy.decide(now_s, waiting, list(self._embedding.values()))
            if not isinstance(decision, Close):
                if decision.until_s < float("inf"):
                    pause_s = max(0.0005, decision.until_s - now_s)
                    self._timer = asyncio.get_running_loop().call_later(pause_s, self.pump)
                return
            items = []
            for item in queue.take(decision.count):
                # It may have grown old while it waited.
                if self._projector.is_hint(item.change, now_s):
                    self._queues[Kind.REREAD].put(item)
                else:
                    items.append(item)
            if items:
                self._launch(Kind.BATCH, items)

    def _launch(self, kind: Kind, items: Sequence[Item]) -> None:
        run = {
            Kind.BATCH: self._run_batch,
            Kind.REREAD: self._run_hints,
            Kind.SWEEP: self._run_sweep,
            Kind.REFUSAL: self._run_refusal,
        }[kind]
        task = asyncio.get_running_loop().create_task(run(items))
        self._running[task] = kind, items
        self._counts[kind] += 1
        if kind in (Kind.BATCH, Kind.REREAD):
            self._metrics.batch.observe(len(items))
            self.launched += 1
            self._embedding[task] = Running(sum(item.waiting.tokens for item in items))
        task.add_done_callback(self._ended)

    async def _run_batch(self, items: Sequence[Item]) -> None:
        works = [self._work(item) for item in items]
        finished = await self._projector.process(works, self._embedded)
        self._policy.observe(time.time(), finished)

    async def _run_hints(self, items: Sequence[Item]) -> None:
        works = {self._work(item): item for item in items}
        finished, invisible = await self._projector.reread(list(works), self._embedded)
        self._policy.observe(time.time(), finished)
        if invisible:
            again = [works[work] for work in invisible]
            self._invisible += sum(len(item.receipts) for item in again)
            asyncio.get_running_loop().call_later(INVISIBLE_PAUSE_S, self._read_again, again, self._queues)

    async def _run_sweep(self, items: Sequence[Item]) -> None:
        for item in items:
            await self._projector.truncate(self._work(item), lambda _: self._move())

    async def _run_refusal(self, items: Sequence[Item]) -> None:
        for item in items:
            assert item.refused is not None
            await self._projector.refuse(self._work(item).refusal(), item.refused)
            item.settle()

    def _work(self, item: Item) -> Work:
        change = item.change

        def done(outcome: Outcome) -> None:
            if len(item.receipts) > 1:
                self._metrics.outcomes[Outcome.COLLAPSED].inc(len(item.receipts) - 1)
            item.settle()

        return Work(
            id=item.id,
            version=change.version,
            row=change.row,
            done=done,
            tokens=item.waiting.tokens,
            change=change,
            record=item.record,
            received_at_s=item.received_at_s,
        )

    def _embedded(self) -> None:
        """The embedder is done with the batch of the task that calls: the next one need not wait for its writes."""
        task = asyncio.current_task()
        if task is not None and self._embedding.pop(task, None) is not None:
            self.pump()

    def _read_again(self, items: Sequence[Item], queues: Mapping[Kind, ChangeQueue]) -> None:
        self._invisible -= sum(len(item.receipts) for item in items)
        if queues is self._queues:
            for item in items:
                self._queues[Kind.REREAD].put(item)
            self.pump()
        else:
            self._give_up(items)
            self._rest()

    def _ended(self, task: asyncio.Task[None]) -> None:
        kind, items = self._running.pop(task)
        self._counts[kind] -= 1
        self._embedding.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)
        if task.cancelled() or error is not None:
            self._give_up(items)
        else:
            self._move()
        self._rest()
        self.pump()
        self._owner.batch_ended()

    # ---- at rest

    def _move(self) -> None:
        self._moved_at_s = time.monotonic()

    def _rest(self) -> None:
        """Note when there is nothing left to do."""
        if not (self._running or self.waiting_changes):
            self._policy.idle(time.time())
            self._idle.set()
            if self._policy.overloaded and self._calm is None:
                # Nothing else would ask before the next change, which may be long in coming.
                self._calm = asyncio.get_running_loop().call_later(_CALM_POLL_S, self._look_again)

    def _look_again(self) -> None:
        self._calm = None
        self._rest()
        self._show()

    def _give_up(self, items: Iterable[Item]) -> None:
        """Leave these unacknowledged; a retired version's hold up nobody."""
        for item in items:
            if not item.is_settled:
                self._metrics.outcomes[Outcome.ABANDONED].inc(len(item.receipts))
                if self.retired:
                    item.settle()

    def _show(self) -> None:
        self._metrics.queued.set(self.waiting_changes)
        self._metrics.queued_bytes.set(self.waiting_bytes)
        self._metrics.in_flight.set(len(self._running))
        if self._policy.overloaded != self._overloaded:
            self._overloaded = self._policy.overloaded
            self._metrics.overloaded.set(self._overloaded)
            log.info("overload" if self._overloaded else "overload_over", pipeline=self._metrics.name)
        if isinstance(self._policy, Deadline):
            cost = self._policy.cost
            self._metrics.all.cost_fixed.labels(self._metrics.name).set(cost.fixed_s)
            self._metrics.all.cost_token.labels(self._metrics.name).set(cost.token_s)

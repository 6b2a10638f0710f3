"""The queue of one pipeline and the batches that run: asks the policy when to close, and hands over."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from daemon.core.batching import Close, Deadline, Policy, Running
from daemon.core.change import Outcome
from daemon.core.queue import ChangeQueue, Item
from daemon.errors import StopPipeline
from daemon.projection.projector import INVISIBLE_PAUSE_S, Projector
from daemon.telemetry.metrics import PipelineMetrics

_CALM_POLL_S = 0.5
log = structlog.get_logger(__name__)


class Dispatcher:
    """Runs batches of one pipeline.

    Args:
        projector: does the work.
        policy: decides about batches.
        batch_max: most items in one.
        in_flight_max: batches between closing and acknowledgement.
        metrics: of the pipeline.
        on_change: called after a batch ended, so that the owner can look at how full the queue is.
        on_failure: called with what ended a batch for good.
    """

    def __init__(
        self,
        projector: Projector,
        policy: Policy,
        batch_max: int,
        in_flight_max: int,
        metrics: PipelineMetrics,
        on_change: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.queue = ChangeQueue()
        self.launched = 0
        """Batches so far."""
        self._projector = projector
        self._policy = policy
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._metrics = metrics
        self._on_change = on_change
        self._on_failure = on_failure
        self._running: dict[asyncio.Task[None], Sequence[Item]] = {}
        self._embedding: dict[asyncio.Task[None], Running] = {}
        self._waiting_for_rows = 0
        self._moved_at_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._overloaded = False
        self.stopped: StopPipeline | None = None
        self.retired = False

    def put(self, items: Sequence[Item]) -> None:
        """Add changes; a stopped pipeline keeps them, unacknowledged; a retired one lets them go."""
        if self.retired:
            self._given_up(items)
            return
        for item in items:
            self.queue.put(item)
        if items:
            if self._idle.is_set():
                self._idle.clear()
                self._moved_at_s = time.monotonic()
            self._pump()

    async def drained(self) -> None:
        """Wait until nothing waits and nothing runs."""
        await self._idle.wait()

    def stuck_s(self) -> float:
        """How long there has been work of which none was finished."""
        return 0.0 if self._idle.is_set() else time.monotonic() - self._moved_at_s

    def abandon(self) -> None:
        """Forget what waits and cancel what runs; its records were not acknowledged and will be read again."""
        self._given_up(self.queue)
        self.queue = ChangeQueue()
        for task in self._running:
            task.cancel()
        self._rest()

    def fail(self, error: BaseException) -> None:
        """Tell the owner what ended the work for good; a table that does not fit any more stops this pipeline."""
        if isinstance(error, StopPipeline):
            self.stop(error)
        self._on_failure(error)

    def retire(self) -> None:
        """Take no part any more: what waits and what runs is let go, and holds up no offset."""
        self.retired = True
        self.abandon()

    def _rest(self) -> None:
        """Note when there is nothing left to do."""
        if not (len(self.queue) or self._running or self._waiting_for_rows):
            self._policy.idle(time.time())
            self._idle.set()
            if self._policy.overloaded and self._calm is None:
                # Nothing else would ask before the next change, which may be long in coming.
                self._calm = asyncio.get_running_loop().call_later(_CALM_POLL_S, self._look_again)

    def _look_again(self) -> None:
        self._calm = None
        self._rest()
        self._show()

    def _given_up(self, items: Iterable[Item]) -> None:
        for item in items:
            if item.outcome is None:
                self._metrics.outcomes[Outcome.ABANDONED].inc(len(item.receipts))
                if self.retired:
                    item.outcome = Outcome.ABANDONED
                    for receipt in item.receipts:
                        receipt.settle()

    def stop(self, error: StopPipeline) -> None:
        """Take nothing more from the queue; what waits is not acknowledged, and read again after a restart."""
        self.stopped = error
        self.abandon()

    def _pump(self) -> None:
        """Close batches as long as the policy says so; then come back when it wants to be asked again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (
            len(self.queue)
            and self.stopped is None
            and not self.retired
            and len(self._running) < self._in_flight_max
        ):
            now_s = time.time()
            decision = self._policy.decide(
                now_s, self.queue.waiting(self._batch_max), list(self._embedding.values())
            )
            if not isinstance(decision, Close):
                if decision.until_s < float("inf"):
                    pause_s = max(0.0005, decision.until_s - now_s)
                    self._timer = asyncio.get_running_loop().call_later(pause_s, self._pump)
                break
            self._launch(self.queue.take(decision.count), now_s)
        self._show()

    def _launch(self, items: Sequence[Item], now_s: float) -> None:
        self._metrics.batch.observe(len(items))
        self.launched += 1
        task = asyncio.get_running_loop().create_task(self._run(items))
        self._running[task] = items
        self._embedding[task] = Running(now_s, sum(item.waiting.tokens for item in items))
        task.add_done_callback(self._ended)

    def _embedded(self) -> None:
        """The embedder is done with the batch of the task that calls: the next one need not wait for its writes."""
        task = asyncio.current_task()
        if task is not None and self._embedding.pop(task, None) is not None:
            self._pump()

    async def _run(self, items: Sequence[Item]) -> None:
        processed = await self._projector.process(items, self._embedded)
        self._policy.observe(time.time(), processed.finished)
        if processed.later:
            self._waiting_for_rows += 1
            asyncio.get_running_loop().call_later(INVISIBLE_PAUSE_S, self._again, processed.later, self.queue)

    def _again(self, items: Sequence[Item], queue: ChangeQueue) -> None:
        self._waiting_for_rows -= 1
        if queue is self.queue:
            self.put(items)
        else:
            self._given_up(items)
            self._rest()

    def _ended(self, task: asyncio.Task[None]) -> None:
        items = self._running.pop(task)
        self._embedding.pop(task, None)
        if task.cancelled():
            self._given_up(items)
        elif (error := task.exception()) is not None:
            self.fail(error)
            self._given_up(items)
        else:
            self._moved_at_s = time.monotonic()
        self._rest()
        self._pump()
        self._on_change()

    def _show(self) -> None:
        self._metrics.queued.set(self.queue.changes)
        self._metrics.queued_bytes.set(self.queue.size_bytes)
        self._metrics.in_flight.set(len(self._running))
        if self._policy.overloaded != self._overloaded:
            self._overloaded = self._policy.overloaded
            self._metrics.overloaded.set(self._overloaded)
            log.info("overload" if self._overloaded else "overload_over", pipeline=self._metrics.name)
        if isinstance(self._policy, Deadline):
            cost = self._policy.cost
            self._metrics.all.cost_fixed.labels(self._metrics.name).set(cost.fixed_s)
            self._metrics.all.cost_token.labels(self._metrics.name).set(cost.token_s)

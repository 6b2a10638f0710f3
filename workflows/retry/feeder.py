"""Brings dead letters from Kafka to the retry workflows; part of `livevec worker`.

The daemon knows nothing of Temporal: while that is away, dead letters wait in their topic. An offset is committed
after Temporal took the letter, so a letter may be sent twice, and the workflow counts it once.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from daemon.errors import RetryLater
from daemon.patience import Patience
from daemon.settings import Config, Pipeline
from daemon.source.kafka.dead_letter_reader import DeadLetter, parse
from daemon.source.kafka.reader import KafkaReader, Partition
from daemon.source.record import Record
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from workflows import search_attributes
from workflows.retry.contract import Complaint, Feed, Letter, RetryPolicy, RetryStart, RetryStatus, within
from workflows.retry.workflow import Retry

log = structlog.get_logger(__name__)
_LETTERS_PER_SIGNAL = 100
_READ_AHEAD = 500
_LOOK_INTERVAL_S = 5.0
_FULL_PAUSE_S = 5.0
_AWAY_S = 1.0
_CALL_TIMEOUT = timedelta(seconds=10)


def workflow_id(pipeline: str) -> str:
    """Return the id of the one retry workflow of a pipeline."""
    return f"retry-{pipeline}"


def group_id(config: Config) -> str:
    """Return the consumer group of the feeders, which share the dead-letter topics among them."""
    return f"{config.kafka.group_id}.retry"


class Feeder:
    """Reads the dead letters of all pipelines; a listener of `KafkaReader`."""

    def __init__(self, config: Config, client: Client, metrics: Metrics, health: Health) -> None:
        self._config = config
        self._client = client
        self._metrics = metrics
        self._patience = Patience(config.retry, health)
        self._pipelines = {
            config.kafka.dead_letter_topic(pipeline.name): pipeline for pipeline in config.pipelines
        }
        self._waiting: dict[str, deque[DeadLetter]] = {topic: deque() for topic in self._pipelines}
        self._arrived = {topic: asyncio.Event() for topic in self._pipelines}
        self._held_back: frozenset[str] = frozenset()
        self._shown: dict[str, set[tuple[str, str]]] = {}
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Feed until cancelled; raise StopProcess where Kafka refuses the group or the topics."""
        kafka = self._config.kafka.model_copy(update={"group_id": group_id(self._config)})
        self._reader = KafkaReader(kafka, list(self._pipelines), self, asyncio.get_running_loop())
        self._reader.start()
        tasks = [
            asyncio.ensure_future(self._feed(topic, pipeline)) for topic, pipeline in self._pipelines.items()
        ]
        tasks += [asyncio.ensure_future(self._look(pipeline)) for pipeline in self._pipelines.values()]
        try:
            done, _ = await asyncio.wait([*tasks, self._failure], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self._reader.stop)

    # ---- what the consumer thread tells

    def received(self, records: Sequence[Record], seeks: int) -> None:
        for record in records:
            self._waiting[record.topic].append(parse(record))
            self._arrived[record.topic].set()
        self._hold_back()

    async def assigned(self, committed: Mapping[Partition, int | None]) -> Mapping[Partition, int | None]:
        return committed

    async def revoking(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        self.lost(partitions)
        return {}

    def lost(self, partitions: Sequence[Partition]) -> None:
        for topic, letters in self._waiting.items():
            kept = [letter for letter in letters if (topic, letter.place.partition) not in partitions]
            self._waiting[topic] = deque(kept)
        self._hold_back()

    def gap(self, partition: Partition, reason: str) -> None:
        log.error(
            "dead_letters_lost",
            topic=partition[0],
            reason=reason,
            remedy="they were deleted before Temporal took them: `livevec verify --repair` finds their rows; raise "
            "the topic's retention",
        )

    def failed(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    def _hold_back(self) -> None:
        held_back = frozenset(topic for topic, letters in self._waiting.items() if len(letters) > _READ_AHEAD)
        if held_back != self._held_back:
            self._held_back = held_back
            self._reader.pause(held_back)

    # ---- what the workflows are told and asked

    async def _feed(self, topic: str, pipeline: Pipeline) -> None:
        full = False
        while True:
            await self._arrived[topic].wait()
            self._metrics.dead_letters_unfed.labels(pipeline.name).set(len(self._waiting[topic]))
            if not self._waiting[topic]:
                self._arrived[topic].clear()
                continue
            status = await self._patience.call("temporal", self._status, pipeline)
            room = _LETTERS_PER_SIGNAL if status is None else min(status.room, _LETTERS_PER_SIGNAL)
            if (room == 0) != full:
                full = room == 0
                log.warning("retry_full" if full else "retry_has_room", pipeline=pipeline.name)
            if full:
                await asyncio.sleep(_FULL_PAUSE_S)
                continue
            await self._tell(topic, pipeline, room)

    async def _tell(self, topic: str, pipeline: Pipeline, count_max: int) -> None:
        waiting = list(self._waiting[topic])
        if letters := waiting[: len(within((_letter(letter) for letter in waiting), count_max))]:
            await self._patience.call("temporal", self._signal, pipeline, letters)
            self._taken(topic, letters)

    def _taken(self, topic: str, letters: Sequence[DeadLetter]) -> None:
        places = {letter.place for letter in letters}
        # Those of a partition that went meanwhile are another feeder's: it sends them again, which is no harm.
        self._waiting[topic] = deque(letter for letter in self._waiting[topic] if letter.place not in places)
        self._hold_back()
        offsets: dict[Partition, int] = {}
        for place in places:
            partition = (topic, place.partition)
            offsets[partition] = max(offsets.get(partition, 0), place.offset + 1)
        self._reader.commit(offsets)

    async def _signal(self, pipeline: Pipeline, letters: Sequence[DeadLetter]) -> None:
        """Signal the workflow, and start it if it does not run; raise RetryLater while Temporal is away."""
        policy = RetryPolicy.of(self._config.retry_dead_letters)
        complaints = {letter.reason: Complaint.of(letter.reason, letter.message) for letter in letters}
        feed = Feed(tuple(_letter(letter) for letter in letters), tuple(complaints.values()), policy)
        try:
            await self._client.start_workflow(
                Retry.run,
                RetryStart(pipeline.name, policy),
                id=workflow_id(pipeline.name),
                task_queue=self._config.temporal.task_queue,
                start_signal="feed",
                start_signal_args=[feed],
                search_attributes=search_attributes.of(pipeline.name, pipeline.table),
                static_summary=f"Dead letters of {pipeline.name}, tried again until none is left",
                rpc_timeout=_CALL_TIMEOUT,
            )
        except RPCError as error:
            raise _away(error) from error

    async def _status(self, pipeline: Pipeline) -> RetryStatus | None:
        """Ask where the workflow stands; None: none runs. It raises RetryLater while Temporal or a worker is away."""
        handle = self._client.get_workflow_handle(workflow_id(pipeline.name))
        try:
            description = await handle.describe(rpc_timeout=_CALL_TIMEOUT)
            if description.status is not WorkflowExecutionStatus.RUNNING:
                return None
            return await handle.query(Retry.status, rpc_timeout=_CALL_TIMEOUT)
        except WorkflowQueryFailedError as error:
            raise RetryLater(
                f"the retry workflow of {pipeline.name} does not answer ({error})", _AWAY_S
            ) from error
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise _away(error) from error

    async def _look(self, pipeline: Pipeline) -> None:
        """Keep the metrics as the workflow has it."""
        while True:
            status = await self._patience.call("temporal", self._status, pipeline)
            by_state = {"waiting": status.waiting, "given_up": status.given_up} if status else {}
            counts = {
                (reason, state): count
                for state, reasons in by_state.items()
                for reason, count in reasons.items()
            }
            shown = self._shown.setdefault(pipeline.name, set())
            for labels in shown | counts.keys():
                self._metrics.dead_letters_held.labels(pipeline.name, *labels).set(counts.get(labels, 0))
            shown |= counts.keys()
            await asyncio.sleep(_LOOK_INTERVAL_S)


@asynccontextmanager
async def fed(
    config: Config, client: Client, metrics: Metrics, health: Health, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Feed while the block runs; a feeder that cannot go on sets `stop`, and its error is raised after the block."""
    if not config.pipelines:
        yield
        return
    feeding = asyncio.ensure_future(Feeder(config, client, metrics, health).run())
    feeding.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        feeding.cancel()
        with suppress(asyncio.CancelledError):
            await feeding


def _letter(dead: DeadLetter) -> Letter:
    return Letter(
        name=dead.name,
        document=dead.document,
        reason=dead.reason,
        version=dead.version,
        at_s=dead.dead_lettered_at_s,
        place=dead.place,
        record=dead.record,
    )


def _away(error: RPCError) -> RetryLater:
    return RetryLater(f"Temporal does not answer ({error.message})", _AWAY_S)

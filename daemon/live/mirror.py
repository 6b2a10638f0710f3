"""One index version of a pipeline in the running daemon: takes its topic's records, and brings them into the index."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from daemon.core.batching import Aimd, Deadline, Fixed, Limits, Policy, Waiting
from daemon.core.change import Change, Operation, Outcome
from daemon.core.document import DocumentBuilder
from daemon.core.progress import Receipt
from daemon.core.queue import Item, size_estimate, tokens_estimate
from daemon.embedding.embedder import Embedder, TextEmbedder
from daemon.embedding.factory import Embedders, StartingEmbedder
from daemon.errors import LivevecError, RejectRow, RetryLater, StopPipeline
from daemon.index import schema
from daemon.index.connection import Client
from daemon.index.layout import document_id
from daemon.index.registry import IndexVersion
from daemon.live.dispatcher import Dispatcher, Owner
from daemon.patience import Patience
from daemon.projection.build import Assembly, TableRows, assemble, check_columns, document_builder
from daemon.settings import BatchingSettings, Config, Pipeline, PostgresSource
from daemon.source.envelope import EnvelopeDecoder
from daemon.source.events import EventDecoder
from daemon.source.kafka.dead_letters import DeadLetterProducer, DeadLetterTopic
from daemon.source.postgres.anchors import XidAnchors
from daemon.source.postgres.reader import PostgresReader
from daemon.source.postgres.table_watch import TableWatch
from daemon.source.record import Record
from daemon.telemetry.metrics import Metrics, PipelineMetrics

_REREAD_TOKENS = 32
"""Assumed for a row that is yet to be read."""


@dataclass(frozen=True)
class Parts:
    """What all pipelines of a process share."""

    config: Config
    redis: Client
    embedders: Embedders
    dead_letters: DeadLetterProducer
    patience: Patience
    metrics: Metrics
    readers: dict[str, PostgresReader]
    anchors: dict[str, XidAnchors]


class MirrorOwner(Owner, Protocol):
    """Whom a mirror tells what ended its work."""

    def give_up(self, mirror: "Mirror", error: LivevecError) -> None:
        """A version that readers do not see cannot go on; the others do."""
        ...


class Mirror:
    """One index version of a pipeline; the owner of its dispatcher.

    Args:
        starting: of its embedder; None: it has started.
        watch: of its table; None for a topic of events.
        active: whether it is the version that readers see.
    """

    def __init__(
        self,
        parts: Parts,
        assembly: Assembly,
        decoder: EnvelopeDecoder | EventDecoder,
        metrics: PipelineMetrics,
        owner: MirrorOwner,
        starting: "asyncio.Task[Embedder] | None",
        watch: TableWatch | None,
        active: bool,
    ) -> None:
        settings = parts.config.batching
        self.pipeline = assembly.pipeline
        self.version = assembly.version
        self.active = active
        self.stuck_alone_since_s: float | None = None
        """When it was first seen to get nowhere while the version that readers see does; see `Versions`."""
        self.watch = watch
        self.writer = assembly.writer
        self.metrics = metrics
        self.dispatcher = Dispatcher(
            assembly.projector,
            policy(settings),
            settings.batch_max,
            settings.in_flight_max,
            metrics,
            self,
        )
        self._decoder = decoder
        self._builder: DocumentBuilder = assembly.builder
        self._target_s = settings.target_ms / 1000
        self._owner = owner
        self._starting = starting
        if starting is not None:
            starting.add_done_callback(self._started)

    @property
    def is_ready(self) -> bool:
        """Whether its embedder has started: until then its changes wait."""
        return self._starting is None

    def take(self, record: Record, receipt: Receipt) -> None:
        """Take a record: queue its change, or dead-letter what cannot be decoded; settle what changes no row.

        The work starts with the dispatcher's `pump`, so that many records make one batch.
        """
        self.metrics.read.inc()
        try:
            change = self._decoder.decode(record)
        except RejectRow as error:
            at_s = record.appended_at_s
            change = Change(Operation.REREAD, (), None, None, 0, None, at_s, at_s)
            self.dispatcher.put(self._item(record, change, receipt, error))
            return
        except StopPipeline as error:
            self.dispatcher.fail(error)
            self.metrics.outcomes[Outcome.ABANDONED].inc()
            if self.dispatcher.retired:
                receipt.settle()
            return
        if change is not None:
            receipt.committed_at_s = change.committed_at_s
            self.dispatcher.put(self._item(record, change, receipt))
        elif self.dispatcher.stopped is None or self.dispatcher.retired:
            self.metrics.outcomes[Outcome.IGNORED].inc()
            receipt.settle()
        else:
            self.metrics.outcomes[Outcome.ABANDONED].inc()

    def show_as(self, active: bool) -> None:
        """Show whether this is the version that readers see: it goes by the pipeline's name in the metrics then."""
        if active != self.active:
            self.metrics.forget()
            self.active = active
            self.metrics.show_as(_shown_name(self.pipeline, self.version, active), seen=active)

    def retire(self) -> None:
        """Let go of everything: nothing waits for it any more, and what it has not done holds up no offset."""
        self.dispatcher.retire()
        self.metrics.forget()
        if self._starting is not None:
            self._starting.cancel()

    # ---- what the dispatcher tells its owner

    def batch_ended(self) -> None:
        self._owner.batch_ended()

    def failed(self, error: BaseException) -> None:
        if self.active or not isinstance(error, LivevecError):
            self._owner.failed(error)
        else:
            self._owner.give_up(self, error)

    def _started(self, task: "asyncio.Task[Embedder]") -> None:
        self._starting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    def _item(
        self, record: Record, change: Change, receipt: Receipt, refused: RejectRow | None = None
    ) -> Item:
        tokens = 0
        if change.row is not None:
            tokens = tokens_estimate(self._builder.text_size(change.row))
        elif change.operation is Operation.REREAD:
            tokens = _REREAD_TOKENS
        return Item(
            id=document_id(change.key),
            change=change,
            receipts=[receipt],
            record=record,
            waiting=Waiting(record.received_at_s, change.committed_at_s + self._target_s, tokens),
            size_bytes=size_estimate(record.size_bytes),
            received_at_s=record.received_at_s,
            refused=refused,
        )


async def build(
    pipeline: Pipeline, version: IndexVersion, active: bool, parts: Parts, owner: MirrorOwner, *, wait: bool
) -> Mirror:
    """Build the mirror of one index version: its table is looked up, its index made if it is missing.

    Args:
        pipeline: as the configuration has it.
        active: whether it is the version that readers see.
        wait: for every part that is away; else for none: the changes wait until the model has started.

    Raises:
        ConfigError: the table lacks a column, or (with `wait`) the version was made with another model.
        FailureClass: a part failed.
    """
    config, call = parts.config, parts.patience.call if wait else parts.patience.once
    source = config.source(pipeline.source)
    settings = version.pipeline(pipeline)
    columns = document_builder(settings, version).columns
    decoder: EnvelopeDecoder | EventDecoder
    rows: TableRows | None = None
    watch: TableWatch | None = None
    if isinstance(source, PostgresSource):
        reader = parts.readers[source.name]
        table = await call(reader.part, reader.schema, pipeline.table)
        check_columns(settings, table, columns)
        decoder = EnvelopeDecoder(
            pipeline.table, table.key, columns, parts.anchors[source.name].widen, table.normaliser(columns)
        )
        rows = TableRows(reader, table, columns, source.reread_rows_max)
        watch = TableWatch(parts.redis, reader, pipeline.name, table, columns)
    else:
        decoder = EventDecoder(config.topic(pipeline), columns)
    await call("redis", schema.ensure, parts.redis, pipeline.name, version)
    starting: asyncio.Task[Embedder] | None = None
    embedder: TextEmbedder
    if wait:
        embedder = await _start(pipeline, version, parts, None)
    else:
        limit_s = None if active else config.retry.stuck_version_s_max
        starting = asyncio.ensure_future(_start(pipeline, version, parts, limit_s))
        embedder = StartingEmbedder(starting)
    metrics = parts.metrics.pipeline(_shown_name(pipeline, version, active), seen=active)
    topic = config.kafka.dead_letter_topic(pipeline.name)
    assembly = assemble(
        config,
        pipeline,
        version,
        client=parts.redis,
        embedder=embedder,
        rows=rows,
        dead_letters=DeadLetterTopic(
            parts.dead_letters, topic, pipeline.name, pipeline.keep_bytes_in_dead_letters
        ),
        patience=parts.patience,
        metrics=metrics,
    )
    return Mirror(parts, assembly, decoder, metrics, owner, starting, watch, active)


async def _start(pipeline: Pipeline, version: IndexVersion, parts: Parts, limit_s: float | None) -> Embedder:
    """Start the version's embedder, and see that it gives the vectors that the version holds."""
    try:
        async with asyncio.timeout(limit_s):
            embedder, space = await parts.embedders.get(version.embedding(parts.config.embedding))
    except TimeoutError:
        raise RetryLater(
            f"{version.model!r} did not answer for {limit_s:g} s; mend that, then reindex again"
        ) from None
    version.check_space(space, pipeline.name)
    return embedder


def policy(settings: BatchingSettings) -> Policy:
    """Return the policy that the configuration names."""
    limits = Limits(
        batch_max=settings.batch_max,
        batch_tokens_max=settings.batch_tokens_max,
        linger_s_max=settings.linger_ms_max / 1000,
    )
    match settings.policy:
        case "deadline":
            return Deadline(limits, settings.target_ms / 1000)
        case "aimd":
            return Aimd(limits, settings.fixed_size)
        case "fixed":
            return Fixed(limits, settings.fixed_size)


def _shown_name(pipeline: Pipeline, version: IndexVersion, active: bool) -> str:
    return pipeline.name if active else f"{pipeline.name}:{version.number}"

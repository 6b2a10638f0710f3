"""One pipeline, put together: from its settings to a decoder, an index and a dispatcher."""

from collections.abc import Callable
from dataclasses import dataclass

from daemon.core.batching import Aimd, Deadline, Fixed, Limits, Policy, Waiting
from daemon.core.change import Change, Operation
from daemon.core.document import DocumentBuilder
from daemon.core.progress import Receipt
from daemon.core.queue import Item, size_estimate, tokens_estimate
from daemon.embedding.batches import EmbeddingBatches
from daemon.embedding.chunker import Chunker
from daemon.embedding.factory import Embedders
from daemon.errors import RejectRow
from daemon.index import schema
from daemon.index.connection import Client
from daemon.index.layout import document_id
from daemon.index.registry import IndexVersion
from daemon.index.writer import IndexWriter
from daemon.live.dispatcher import Dispatcher
from daemon.patience import Patience
from daemon.projection.build import TableRows, check_columns, document_builder
from daemon.projection.projector import Projector
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


class Mirror:
    """One index version of a pipeline in a running process: gives items for records, and batches them."""

    def __init__(
        self,
        pipeline: Pipeline,
        version: IndexVersion,
        decoder: EnvelopeDecoder | EventDecoder,
        builder: DocumentBuilder,
        writer: IndexWriter,
        projector: Projector,
        dispatcher: Dispatcher,
        target_s: float,
        metrics: PipelineMetrics,
        watch: TableWatch | None,
        active: bool,
    ) -> None:
        self.pipeline = pipeline
        self.version = version
        self.active = active
        self.stuck_alone_since_s: float | None = None
        """When it was first seen to get nowhere while the version that readers see does; see `Mirrors`."""
        self.watch = watch
        self.writer = writer
        self.projector = projector
        self.dispatcher = dispatcher
        self.metrics = metrics
        self._decoder = decoder
        self._builder = builder
        self._target_s = target_s

    def show_as(self, active: bool) -> None:
        """Whether this is the version that readers see: it goes by the pipeline's name in the metrics."""
        if active != self.active:
            self.metrics.forget()
            self.active = active
            self.metrics.show_as(_shown_name(self.pipeline, self.version, active), seen=active)

    def decode(self, record: Record) -> Change | None:
        """See the decoders: None for a record that changes no row."""
        return self._decoder.decode(record)

    def item(self, record: Record, change: Change, receipt: Receipt) -> Item:
        """What the queue holds of a change."""
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
        )

    async def reject(self, record: Record, error: RejectRow, receipt: Receipt) -> None:
        """Dead-letter a record that could not be decoded."""
        at_s = record.appended_at_s
        change = Change(Operation.REREAD, (), None, None, 0, None, at_s, at_s)
        waiting = Waiting(record.received_at_s, at_s, 0)
        await self.projector.reject(Item("", change, [receipt], record, waiting, record.size_bytes), error)


async def assemble(
    pipeline: Pipeline,
    version: IndexVersion,
    active: bool,
    parts: Parts,
    on_change: Callable[[], None],
    on_failure: Callable[[BaseException], None],
) -> Mirror:
    """Build one index version of a pipeline: its table is looked up, its index made if it is missing.

    Args:
        pipeline: with the settings that the version was made with (`IndexVersion.pipeline`).
        active: whether it is the version that readers see.

    Raises:
        ConfigError: the table lacks a column, or the version was made with another model.
        FailureClass: a part failed.
    """
    config = parts.config
    source = config.source(pipeline.source)
    embedder, space = await parts.embedders.get(version.embedding(config.embedding))
    version.check_space(space, pipeline.name)
    builder = document_builder(pipeline, version)
    decoder: EnvelopeDecoder | EventDecoder
    rows: TableRows | None = None
    watch: TableWatch | None = None
    if isinstance(source, PostgresSource):
        reader = parts.readers[source.name]
        table = await parts.patience.call("source", lambda: reader.schema(pipeline.table))
        check_columns(pipeline, table, builder.columns)
        decoder = EnvelopeDecoder(
            pipeline.table, table.key, builder.columns, parts.anchors[source.name].widen
        )
        rows = TableRows(reader, table, builder.columns, source.reread_rows_max)
        watch = TableWatch(parts.redis, reader, pipeline.name, table, builder.columns)
    else:
        decoder = EventDecoder(config.topic(pipeline), builder.columns)
    layout = await parts.patience.call("redis", lambda: schema.ensure(parts.redis, pipeline.name, version))
    writer = IndexWriter(parts.redis, layout, config.redis.pipeline_commands_max)
    metrics = parts.metrics.pipeline(_shown_name(pipeline, version, active), seen=active)
    embedding = EmbeddingBatches(embedder, config.embedding.batch_texts_max, pipeline.index.type)
    topic = config.kafka.dead_letter_topic(pipeline.name)
    projector = Projector(
        builder=builder,
        chunk=Chunker(pipeline.chunking),
        writer=writer,
        embedding=embedding,
        rows=rows,
        dead_letters=DeadLetterTopic(
            parts.dead_letters, topic, pipeline.name, pipeline.keep_bytes_in_dead_letters
        ),
        patience=parts.patience,
        metrics=metrics,
        marker_ttl_s=config.redis.delete_marker_ttl_s,
    )
    dispatcher = Dispatcher(
        projector,
        policy(config.batching),
        config.batching.batch_max,
        config.batching.in_flight_max,
        metrics,
        on_change,
        on_failure,
    )
    target_s = config.batching.target_ms / 1000
    return Mirror(
        pipeline, version, decoder, builder, writer, projector, dispatcher, target_s, metrics, watch, active
    )


def policy(settings: BatchingSettings) -> Policy:
    """The policy that the configuration names."""
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

"""Probes of every part of a running livevec: all run at once, each within seconds, whatever state the part is in."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx
from confluent_kafka import Consumer, KafkaException, TopicPartition

from connectors import slot
from connectors.connect import KafkaConnect
from connectors.connect import Status as ConnectorStatus
from daemon.bench.percentiles import STAGES, Percentiles, percentiles_ms
from daemon.cli.daemon_http import DaemonHttp
from daemon.embedding.factory import make_embedder
from daemon.errors import ConnectorError, LivevecError, StopProcess
from daemon.index import schema
from daemon.index.connection import Client, connect, translated
from daemon.index.registry import Versions
from daemon.index.writer import IndexWriter
from daemon.settings import Config, Pipeline, PostgresSource
from daemon.source.kafka.reader import consumer_settings

_CALL_TIMEOUT_S = 3.0
_PROBE_TIMEOUT_S = 6.0
_RECENT_S = 300.0
_UP = "start it; the embedded stack: `livevec up --detach`"


@dataclass(frozen=True)
class Part:
    """One part: its state, and what to do where it is not `ok`."""

    name: str
    ok: bool
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class PartitionLag:
    """How far the group is behind. `committed`: the next offset that it will read, None before its first commit."""

    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int


@dataclass(frozen=True)
class IndexState:
    """How many chunks a search can find, how many Redis could not index, and why a reconcile is due."""

    pipeline: str
    documents: int
    indexing_failures: int
    needs_reconcile: tuple[str, ...]


@dataclass(frozen=True)
class SlotState:
    """A source's replication slot. `lag_bytes`: the log that PostgreSQL wrote and the slot has not confirmed."""

    source: str
    slot: str
    active: bool
    lag_bytes: int


@dataclass(frozen=True)
class Freshness:
    """How fresh the indexes are.

    Attributes:
        behind_s: by source, seconds since the moment up to which every change is searchable.
        commit_to_searchable_ms: of the samples of the last minutes; None where no daemon answers.
        stages_ms: the same by stage.
    """

    behind_s: dict[str, float] = field(default_factory=dict)
    commit_to_searchable_ms: Percentiles | None = None
    stages_ms: dict[str, Percentiles] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What one probe found."""

    parts: Sequence[Part]
    lag: Sequence[PartitionLag] = ()
    indexes: Sequence[IndexState] = ()
    slots: Sequence[SlotState] = ()
    freshness: Freshness | None = None


@dataclass(frozen=True)
class StatusReport:
    """Everything that `livevec status` shows."""

    ok: bool
    parts: tuple[Part, ...]
    slots: tuple[SlotState, ...]
    lag: tuple[PartitionLag, ...]
    indexes: tuple[IndexState, ...]
    freshness: Freshness


async def look(config: Config) -> StatusReport:
    """Ask all parts at once, and return what was found."""
    probes: list[tuple[str, Awaitable[Findings]]] = [
        ("kafka", _in_thread(lambda: _kafka(config))),
        ("redis", _redis(config)),
        ("embedder", _embedder(config)),
        ("temporal", _temporal(config)),
        ("daemon", _in_thread(lambda: _daemon(config))),
    ]
    for source in config.sources:
        if isinstance(source, PostgresSource):
            quick = source.model_copy(update={"timeout_s": _CALL_TIMEOUT_S})
            probes.append((f"postgres {source.name}", _in_thread(lambda s=quick: _postgres(s))))  # type: ignore[misc]
            probes.append(
                (f"connector {source.name}", _in_thread(lambda s=quick: _connector(config, s)))  # type: ignore[misc]
            )
    results = await asyncio.gather(*(_bounded(name, probe) for name, probe in probes))
    parts = tuple(part for findings in results for part in findings.parts)
    return StatusReport(
        ok=all(part.ok for part in parts),
        parts=parts,
        slots=tuple(state for findings in results for state in findings.slots),
        lag=tuple(lag for findings in results for lag in findings.lag),
        indexes=tuple(index for findings in results for index in findings.indexes),
        freshness=next((findings.freshness for findings in results if findings.freshness), Freshness()),
    )


async def _bounded(name: str, probe: Awaitable[Findings]) -> Findings:
    """Return what the probe found; a part that does not answer is a finding too."""
    try:
        return await asyncio.wait_for(probe, _PROBE_TIMEOUT_S)
    except TimeoutError:
        message = f"no answer within {_PROBE_TIMEOUT_S:g} s"
        return Findings(
            [Part(name, False, message, "it hangs or is overloaded: see its log, then restart it")]
        )
    except ConnectorError as error:
        return Findings([Part(name, False, str(error).removesuffix(f"; {error.remedy}"), error.remedy)])
    except LivevecError as error:
        return Findings([Part(name, False, str(error), "" if isinstance(error, StopProcess) else _UP)])


def _in_thread(work: Callable[[], Findings]) -> Awaitable[Findings]:
    """Run `work` in a thread that does not delay the end of the process, as asyncio's own threads do."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Findings] = loop.create_future()

    def settle(result: Findings | None, error: BaseException | None) -> None:
        if not future.done():
            if error is not None:
                future.set_exception(error)
            elif result is not None:
                future.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return future


def _kafka(config: Config) -> Findings:
    # log_level 0: librdkafka's own lines would stand between those of the command; its errors are raised anyway.
    consumer = Consumer({**consumer_settings(config.kafka), "log_level": 0})
    try:
        known = consumer.list_topics(timeout=_CALL_TIMEOUT_S).topics
        topics = sorted({config.topic(pipeline) for pipeline in config.pipelines})
        partitions = [TopicPartition(t, p) for t in topics if t in known for p in sorted(known[t].partitions)]
        lag = [
            _lag(consumer, position) for position in consumer.committed(partitions, timeout=_CALL_TIMEOUT_S)
        ]
    except KafkaException as error:
        address = config.kafka.bootstrap_servers
        return Findings([Part("kafka", False, f"{address} cannot be reached ({error.args[0].str()})", _UP)])
    finally:
        consumer.close()
    missing = [topic for topic in topics if topic not in known]
    if missing:
        message = f"no topic {', '.join(missing)}"
        return Findings([Part("kafka", False, message, "`livevec connector apply` creates it")], lag)
    behind = sum(partition.lag for partition in lag)
    return Findings([Part("kafka", True, f"{len(lag)} partitions, {behind:,} records behind")], lag)


def _lag(consumer: Consumer, position: TopicPartition) -> PartitionLag:
    low, high = consumer.get_watermark_offsets(position, timeout=_CALL_TIMEOUT_S, cached=False)
    committed = position.offset if position.offset >= 0 else None
    lag = max(0, high - (low if committed is None else committed))
    return PartitionLag(position.topic, position.partition, committed, high, lag)


def _postgres(source: PostgresSource) -> Findings:
    name = f"postgres {source.name}"
    with slot.connected(source) as connection:
        row = connection.execute(
            "SELECT active, wal_status = 'lost', coalesce(pg_current_wal_lsn() - confirmed_flush_lsn, 0)::int8"
            " FROM pg_replication_slots WHERE slot_name = %s",
            [source.slot_name],
        ).fetchone()
    if row is None:
        message = f"up, but there is no slot {source.slot_name}"
        return Findings([Part(name, False, message, "`livevec connector apply` creates it")])
    active, lost, lag_bytes = bool(row[0]), bool(row[1]), int(str(row[2]))
    state = SlotState(source.name, source.slot_name, active, lag_bytes)
    message = f"slot {source.slot_name} {'active' if active else 'not active'}, {lag_bytes:,} bytes behind"
    remedy = ""
    if lost:
        message = f"slot {source.slot_name} lost a part of the log that it needed"
        remedy = "delete the connector with its slot, raise the source's `era` by one, apply, verify --repair"
    elif not active:
        remedy = "see the connector below; PostgreSQL keeps its log until the connector reads again"
    return Findings([Part(name, active and not lost, message, remedy)], slots=[state])


def _connector(config: Config, source: PostgresSource) -> Findings:
    name = f"connector {source.name}"
    with KafkaConnect(config.connect.model_copy(update={"timeout_s": _CALL_TIMEOUT_S})) as client:
        status = client.status(source.name)
    if status is None:
        return Findings(
            [Part(name, False, "there is none", "`livevec connector apply` creates it")],
        )
    message = f"{status.state}, task {status.task or 'none'}"
    if (status.state, status.task) == ("RUNNING", "RUNNING"):
        return Findings([Part(name, True, message)])
    return Findings([Part(name, False, f"{message} {status.error}".strip(), _remedy(source, status))])


def _remedy(source: PostgresSource, status: ConnectorStatus) -> str:
    if status.state in ("PAUSED", "STOPPED"):
        return f"`livevec connector resume {source.name}`"
    return f"`livevec connector apply {source.name}` says why, and restarts it"


async def _redis(config: Config) -> Findings:
    client = connect(config.redis.model_copy(update={"timeout_s": _CALL_TIMEOUT_S}))
    try:
        with translated():
            memory = await client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            message = f"{memory.get('used_memory_human', '?')} used"
            if memory.get("maxmemory"):
                message += f" of {memory['maxmemory_human']}"
            parts = [Part("redis", True, message)]
        else:
            remedy = "CONFIG SET maxmemory-policy noeviction, then `livevec verify --repair`"
            parts = [
                Part("redis", False, f"maxmemory-policy {policy} may evict what guards the rows", remedy)
            ]
        indexes = []
        for pipeline in config.pipelines:
            part, state = await _index(client, config, pipeline)
            parts.append(part)
            if state is not None:
                indexes.append(state)
        return Findings(parts, indexes=indexes)
    finally:
        await client.aclose()


async def _index(client: Client, config: Config, pipeline: Pipeline) -> tuple[Part, IndexState | None]:
    name = f"index {pipeline.name}"
    info = await schema.info(client, pipeline.name)
    if info is None:
        return Part(name, False, "there is none", "`livevec run` makes it when it starts"), None
    versions = Versions(client, pipeline.name)
    number = (await versions.known()).active
    writer = IndexWriter(client, versions.layout(number), config.redis.pipeline_commands_max)
    state = IndexState(
        pipeline=pipeline.name,
        documents=info.documents,
        indexing_failures=info.indexing_failures,
        needs_reconcile=tuple(sorted(await writer.reconcile_reasons())),
    )
    remedy = f"`livevec verify {pipeline.name} --repair`"
    if state.needs_reconcile:
        reasons = ", ".join(state.needs_reconcile)
        return Part(name, False, f"{state.documents:,} documents, may be wrong: {reasons}", remedy), state
    if state.indexing_failures:
        message = f"{state.documents:,} documents, {state.indexing_failures:,} could not be indexed"
        return Part(name, False, message, remedy), state
    return Part(name, True, f"{state.documents:,} documents"), state


async def _embedder(config: Config) -> Findings:
    embedder = make_embedder(config.embedding.model_copy(update={"timeout_s": _CALL_TIMEOUT_S}))
    try:
        space = await embedder.start()
        began_s = time.perf_counter()
        await embedder.embed(["livevec"])
        took_ms = (time.perf_counter() - began_s) * 1000
    finally:
        await embedder.close()
    return Findings(
        [Part("embedder", True, f"{space.model}, {space.dimension} numbers, one text in {took_ms:.1f} ms")]
    )


async def _temporal(config: Config) -> Findings:
    from temporalio.client import Client as TemporalClient
    from temporalio.service import RPCError

    settings = config.temporal
    try:
        client = await TemporalClient.connect(settings.address, namespace=settings.namespace)
        healthy = await client.service_client.check_health()
    except (RuntimeError, RPCError) as error:
        message = f"{settings.address} cannot be reached ({str(error).partition(chr(10))[0][:120]})"
        return Findings([Part("temporal", False, message, _UP)])
    message = f"namespace {settings.namespace}, UI at {settings.ui_url}"
    return Findings([Part("temporal", healthy, message, "" if healthy else "see Temporal's log")])


def _daemon(config: Config) -> Findings:
    daemon = DaemonHttp(config.telemetry.address, _CALL_TIMEOUT_S)
    try:
        status = daemon.status()
        behind = daemon.gauges("livevec_fresh_through_timestamp_seconds")
        _, samples = daemon.samples(max(0, status["samples"] - 5_000))
    except httpx.HTTPError as error:
        message = f"no daemon answers at {daemon.url} ({type(error).__name__})"
        return Findings([Part("daemon", False, message, "start it: `livevec run`")])
    finally:
        daemon.close()
    now_s = time.time()
    recent = [sample for sample in samples if sample["committed_at"] > now_s - _RECENT_S]
    freshness = Freshness(
        behind_s={source: round(now_s - at_s, 3) for source, at_s in behind.items() if at_s > 0},
        commit_to_searchable_ms=percentiles_ms([sample["total"] for sample in recent]),
        stages_ms={stage: percentiles_ms([sample[stage] for sample in recent]) for stage in STAGES},
    )
    down = [f"{name}: {part['message']}" for name, part in status["parts"].items() if not part["up"]]
    down += [f"pipeline {name}: {message}" for name, message in status["stopped_pipelines"].items()]
    if status["ready"]:
        part = Part("daemon", True, f"ready at {daemon.url}")
    elif down:
        part = Part("daemon", False, "; ".join(down), "repair that part; the daemon continues by itself")
    else:
        part = Part("daemon", False, "up, but has no partitions yet", "wait for the group to assign them")
    return Findings([part], freshness=freshness)

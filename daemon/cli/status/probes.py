"""Probes of every part of a running livevec: all run at once, each within seconds, whatever state the part is in."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import httpx
from confluent_kafka import Consumer, KafkaException, TopicPartition
from temporalio.client import Client as TemporalClient
from temporalio.service import RPCError

from connectors import slot
from connectors.connect import KafkaConnect
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
class StatusReport:
    """Everything that `livevec status` shows."""

    ok: bool
    parts: tuple[Part, ...]
    slots: tuple[SlotState, ...]
    lag: tuple[PartitionLag, ...]
    indexes: tuple[IndexState, ...]
    freshness: Freshness


Findings = Sequence[Part | PartitionLag | IndexState | SlotState | Freshness]
"""What one probe found: a part at least."""
_Kind = TypeVar("_Kind")


class _NotOk(Exception):
    """The probed part is not ok: its message and remedy, and what was found all the same."""

    def __init__(self, message: str, remedy: str, *findings: PartitionLag | SlotState) -> None:
        self.message = message
        self.remedy = remedy
        self.findings = findings


async def look(config: Config) -> StatusReport:
    """Ask all parts at once, and return what was found."""
    probes: list[tuple[str, Awaitable[Findings]]] = [
        ("kafka", _in_thread(partial(_kafka, config))),
        ("redis", _redis(config)),
        ("embedder", _embedder(config)),
        ("temporal", _temporal(config)),
        ("daemon", _in_thread(partial(_daemon, config))),
    ]
    for source in config.sources:
        if isinstance(source, PostgresSource):
            quick = source.model_copy(update={"timeout_s": _CALL_TIMEOUT_S})
            probes.append((f"postgres {source.name}", _in_thread(partial(_postgres, quick))))
            probes.append((f"connector {source.name}", _in_thread(partial(_connector, config, quick))))
    results = await asyncio.gather(*(_bounded(name, probe) for name, probe in probes))

    def every(kind: type[_Kind]) -> tuple[_Kind, ...]:
        return tuple(finding for findings in results for finding in findings if isinstance(finding, kind))

    parts = every(Part)
    return StatusReport(
        ok=all(part.ok for part in parts),
        parts=parts,
        slots=every(SlotState),
        lag=every(PartitionLag),
        indexes=every(IndexState),
        freshness=next(iter(every(Freshness)), Freshness()),
    )


async def _bounded(name: str, probe: Awaitable[Findings]) -> Findings:
    """Return what the probe found; a part that does not answer, or is not ok, is a finding too."""
    try:
        return await asyncio.wait_for(probe, _PROBE_TIMEOUT_S)
    except TimeoutError:
        message = f"no answer within {_PROBE_TIMEOUT_S:g} s"
        return [Part(name, False, message, "it hangs or is overloaded: see its log, then restart it")]
    except _NotOk as problem:
        return [Part(name, False, problem.message, problem.remedy), *problem.findings]
    except ConnectorError as error:
        return [Part(name, False, str(error).removesuffix(f"; {error.remedy}"), error.remedy)]
    except LivevecError as error:
        return [Part(name, False, str(error), "" if isinstance(error, StopProcess) else _UP)]


def _in_thread(work: Callable[[], Findings]) -> Awaitable[Findings]:
    """Run `work` in a thread that does not delay the end of the process, as asyncio's own threads do."""
    future: Future[Findings] = Future()
    # A future that runs cannot be cancelled: the thread sets its result also after nobody waits any more.
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(future)


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
        raise _NotOk(f"{address} cannot be reached ({error.args[0].str()})", _UP) from error
    finally:
        consumer.close()
    missing = [topic for topic in topics if topic not in known]
    if missing:
        raise _NotOk(f"no topic {', '.join(missing)}", "`livevec connector apply` creates it", *lag)
    behind = sum(partition.lag for partition in lag)
    return [Part("kafka", True, f"{len(lag)} partitions, {behind:,} records behind"), *lag]


def _lag(consumer: Consumer, position: TopicPartition) -> PartitionLag:
    low, high = consumer.get_watermark_offsets(position, timeout=_CALL_TIMEOUT_S, cached=False)
    committed = position.offset if position.offset >= 0 else None
    lag = max(0, high - (low if committed is None else committed))
    return PartitionLag(position.topic, position.partition, committed, high, lag)


def _postgres(source: PostgresSource) -> Findings:
    with slot.connected(source) as connection:
        row = connection.execute(
            "SELECT active, wal_status = 'lost', coalesce(pg_current_wal_lsn() - confirmed_flush_lsn, 0)::int8"
            " FROM pg_replication_slots WHERE slot_name = %s",
            [source.slot_name],
        ).fetchone()
    if row is None:
        message = f"up, but there is no slot {source.slot_name}"
        raise _NotOk(message, "`livevec connector apply` creates it")
    active, lost, lag_bytes = bool(row[0]), bool(row[1]), int(str(row[2]))
    state = SlotState(source.name, source.slot_name, active, lag_bytes)
    if lost:
        raise _NotOk(
            f"slot {source.slot_name} lost a part of the log that it needed",
            "delete the connector with its slot, raise the source's `era` by one, apply, verify --repair",
            state,
        )
    message = f"slot {source.slot_name} {'active' if active else 'not active'}, {lag_bytes:,} bytes behind"
    if not active:
        remedy = "see the connector below; PostgreSQL keeps its log until the connector reads again"
        raise _NotOk(message, remedy, state)
    return [Part(f"postgres {source.name}", True, message), state]


def _connector(config: Config, source: PostgresSource) -> Findings:
    with KafkaConnect(config.connect.model_copy(update={"timeout_s": _CALL_TIMEOUT_S})) as client:
        status = client.status(source.name)
    if status is None:
        raise _NotOk("there is none", "`livevec connector apply` creates it")
    message = f"{status.state}, task {status.task or 'none'}"
    if (status.state, status.task) == ("RUNNING", "RUNNING"):
        return [Part(f"connector {source.name}", True, message)]
    remedy = f"`livevec connector apply {source.name}` says why, and restarts it"
    if status.state in ("PAUSED", "STOPPED"):
        remedy = f"`livevec connector resume {source.name}`"
    raise _NotOk(f"{message} {status.error}".strip(), remedy)


async def _redis(config: Config) -> Findings:
    async with aclosing(connect(config.redis.model_copy(update={"timeout_s": _CALL_TIMEOUT_S}))) as client:
        with translated():
            memory = await client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            message = f"{memory.get('used_memory_human', '?')} used"
            if memory.get("maxmemory"):
                message += f" of {memory['maxmemory_human']}"
            part = Part("redis", True, message)
        else:
            remedy = "CONFIG SET maxmemory-policy noeviction, then `livevec verify --repair`"
            part = Part("redis", False, f"maxmemory-policy {policy} may evict what guards the rows", remedy)
        indexes = [await _index(client, config, pipeline) for pipeline in config.pipelines]
    return [part, *(finding for findings in indexes for finding in findings)]


async def _index(client: Client, config: Config, pipeline: Pipeline) -> Findings:
    name = f"index {pipeline.name}"
    info = await schema.info(client, pipeline.name)
    if info is None:
        return [Part(name, False, "there is none", "`livevec run` makes it when it starts")]
    versions = Versions(client, pipeline.name)
    number = (await versions.known()).active
    writer = IndexWriter(client, versions.layout(number), config.redis.pipeline_commands_max)
    reasons = tuple(sorted(await writer.reconcile_reasons()))
    message, ok = f"{info.documents:,} documents", not reasons and not info.indexing_failures
    if reasons:
        message += f", may be wrong: {', '.join(reasons)}"
    elif info.indexing_failures:
        message += f", {info.indexing_failures:,} could not be indexed"
    part = Part(name, ok, message, "" if ok else f"`livevec verify {pipeline.name} --repair`")
    return [part, IndexState(pipeline.name, info.documents, info.indexing_failures, reasons)]


async def _embedder(config: Config) -> Findings:
    embedder = make_embedder(config.embedding.model_copy(update={"timeout_s": _CALL_TIMEOUT_S}))
    try:
        space = await embedder.start()
        began_s = time.perf_counter()
        await embedder.embed(["livevec"])
        took_ms = (time.perf_counter() - began_s) * 1000
    finally:
        await embedder.close()
    message = f"{space.model}, {space.dimension} numbers, one text in {took_ms:.1f} ms"
    return [Part("embedder", True, message)]


async def _temporal(config: Config) -> Findings:
    settings = config.temporal
    try:
        client = await TemporalClient.connect(settings.address, namespace=settings.namespace)
        healthy = await client.service_client.check_health()
    except (RuntimeError, RPCError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise _NotOk(f"{settings.address} cannot be reached ({reason})", _UP) from error
    message = f"namespace {settings.namespace}, UI at {settings.ui_url}"
    return [Part("temporal", healthy, message, "" if healthy else "see Temporal's log")]


def _daemon(config: Config) -> Findings:
    daemon = DaemonHttp(config.telemetry.address, _CALL_TIMEOUT_S)
    try:
        status = daemon.status()
        behind = daemon.gauges("livevec_fresh_through_timestamp_seconds")
        _, samples = daemon.samples(max(0, status["samples"] - 5_000))
    except httpx.HTTPError as error:
        message = f"no daemon answers at {daemon.url} ({type(error).__name__})"
        raise _NotOk(message, "start it: `livevec run`") from error
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
    return [part, freshness]

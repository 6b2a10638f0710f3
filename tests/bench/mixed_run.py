"""Running live changes beside a backfill: the threads, the worker and the workflows of `mixed`."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import psycopg
import redis

from daemon.bench import ceiling
from daemon.bench.latency import Latency
from daemon.bench.load import LoadRow, LoadTable
from daemon.bench.throughput import measure_copy
from daemon.cli.bench.setting import NAME, free_port, write_config
from daemon.cli.bench.steps import Bench, Livevec, livevec_running, load_rows, prepared, progress
from daemon.cli.child import ChildProcess
from daemon.cli.console import Steps
from daemon.cli.daemon_http import DaemonHttp
from daemon.config import default_home
from daemon.errors import LivevecError
from daemon.index.layout import Layout
from daemon.index.registry import FIRST_VERSION
from daemon.settings import Config
from tests.bench.mixed import MixedReport, Sighting, during, mixed_report, speed
from tests.bench.stored import stored_texts
from workflows import client as temporal
from workflows.backfill.contract import Target
from workflows.backfill.workflow import Backfill, BackfillOrder, BackfillResult, workflow_id
from workflows.progress import Progress

_ALONE_S = 10.0
_POLL_S = 0.1
_LAST_TIMEOUT_S = 60.0
_QUIET_S = 2.0
_Result = TypeVar("_Result")


def measure(config: Config, steps: Steps, rows: int, rate: float, tokens: int) -> MixedReport:
    """Backfill `rows` three times: alone, beside `rate` live inserts a second, alone again.

    Raises:
        LivevecError: a server refused, or rows did not become searchable.
    """
    load = load_rows(steps, tokens, rows + round(rate * (_ALONE_S + _seconds_max(rows))))
    table, live = load[:rows], iter(load[rows:])
    with prepared(config, steps) as bench, livevec_running(bench, steps) as livevec:
        measure_copy(livevec, table, progress(steps))
        before = _Live(bench, livevec, live, rate)
        before.run(lambda: time.sleep(_ALONE_S))
        with _worker(bench, steps) as own:
            first = speed(_backfill(own, livevec, steps, "alone"))
            beside = _Live(bench, livevec, live, rate)
            sightings = beside.run(lambda: _backfill(own, livevec, steps, "beside live changes"))
            last = speed(_backfill(own, livevec, steps, "alone again"))
            # Measured while everything that a backfill needs is there, and idle.
            with steps.step("measure the embedder alone"):
                texts = [row.text for row in table]
                alone = ceiling.texts_per_s(config.embedding, texts[: rows // 5], texts)
    return mixed_report(
        rows,
        tokens,
        rate,
        during(beside.latencies, sightings[0].at_s, sightings[-1].at_s),
        during(before.latencies, 0.0, float("inf")),
        (first, last),
        speed(sightings),
        alone,
    )


def _seconds_max(rows: int) -> float:
    """Return how long a backfill takes at most: live rows are made for so long."""
    return 60 + rows / 20


class _Live:
    """Inserts at a steady rate in a thread, while something else runs."""

    def __init__(self, bench: Bench, livevec: Livevec, rows: Iterator[LoadRow], rate: float) -> None:
        self.latencies: list[Latency] = []
        self._dsn = bench.setting.source.dsn.get_secret_value()
        self._redis_url = bench.setting.config.redis.url.get_secret_value()
        self._livevec = livevec
        self._rows = rows
        self._rate = rate
        self._stop = threading.Event()
        self._inserted: list[str] = []
        self._failure: BaseException | None = None

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Return the result of `work`, once all that was inserted meanwhile is searchable.

        Raises:
            LivevecError: PostgreSQL refused, or rows did not become searchable.
        """
        self._livevec.arrived()
        thread = threading.Thread(target=self._insert, name="live", daemon=True)
        thread.start()
        try:
            result = work()
        finally:
            self._stop.set()
            thread.join()
        if self._failure is not None:
            raise self._failure
        missing = set(self._inserted)
        arrived_at_s = time.monotonic()
        ends_at_s = arrived_at_s + _LAST_TIMEOUT_S
        while missing:
            for latency in self._livevec.arrived():
                missing.discard(latency.id)
                self.latencies.append(latency)
                arrived_at_s = time.monotonic()
            if time.monotonic() > arrived_at_s + _QUIET_S:
                # The backfill read such a row before its change arrived: the change had nothing to embed then.
                missing -= stored_texts(self._redis_url, self._livevec.pipeline).keys()
            if time.monotonic() > ends_at_s:
                raise LivevecError(
                    f"{len(missing)} live rows did not become searchable; see `livevec status`"
                )
            time.sleep(_POLL_S)
        return result

    def _insert(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                table = LoadTable(connection, self._livevec.table.name)
                began_s, number = time.monotonic(), 0
                while not self._stop.wait(max(0.0, began_s + number / self._rate - time.monotonic())):
                    row = next(self._rows)
                    table.insert([row], self._rate, lambda _: None)
                    self._inserted.append(str(row.id))
                    number += 1
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._failure = error


@contextmanager
def _worker(bench: Bench, steps: Steps) -> Iterator[Config]:
    """A worker on a task queue of its own; yields the configuration with which its workflows are started."""
    config = bench.setting.daemon(bench.setting.config.pipelines[0])
    address = f"127.0.0.1:{free_port()}"
    worker = config.temporal.worker.model_copy(
        update={
            "metrics_address": address,
            "sdk_metrics_address": f"127.0.0.1:{free_port()}",
            "deployment": "",
        }
    )
    temporal = config.temporal.model_copy(update={"task_queue": NAME, "worker": worker})
    pipelines = tuple(pipeline.model_copy(update={"reconcile_every_s": 0.0}) for pipeline in config.pipelines)
    config = config.model_copy(update={"temporal": temporal, "pipelines": pipelines})
    path = bench.folder / "worker.toml"
    write_config(path, config)
    command = [sys.executable, "-m", "daemon.cli", "--config", str(path), "worker"]
    log = default_home() / "logs" / "bench-worker.log"
    http = DaemonHttp(address)
    try:
        with ChildProcess(command, log, "the worker") as child:
            with steps.step("start the worker"):
                child.wait_until(lambda: http.ready() is True, "was not ready")
            yield config
    finally:
        http.close()


def _backfill(config: Config, livevec: Livevec, steps: Steps, what: str) -> Sequence[Sighting]:
    """Empty the index, backfill it, and return how far the backfill was at which time.

    Raises:
        WorkflowError: Temporal refused, or the backfill failed.
    """
    _forget(config, livevec.pipeline)
    step = f"backfill {what}"
    steps.news(step)
    sightings = asyncio.run(_watched(config, livevec.pipeline, steps, step))
    steps.news(step, f"{sightings[-1].rows:,} rows", end=True)
    return sightings


async def _watched(config: Config, name: str, steps: Steps, step: str) -> list[Sighting]:
    sightings: list[Sighting] = []

    def on_progress(progress: Progress) -> None:
        sightings.append(Sighting(time.time(), progress.done))
        steps.news(step, progress.phase, progress.done, progress.total)

    client = await temporal.connect(config)
    target = Target(pipeline=name)
    handle = await temporal.start(
        client,
        config,
        Backfill.run,
        BackfillOrder(target=target),
        workflow_id=workflow_id(target),
        pipeline=config.pipeline(name),
        summary="a measurement",
    )
    try:
        await temporal.follow(handle, on_progress, BackfillResult, _POLL_S)
    except BaseException:
        await handle.terminate("the measurement ended")
        raise
    return sightings


def _forget(config: Config, pipeline: str) -> None:
    """Remove every document from the index, and with them what it knew of their versions."""
    layout = Layout(pipeline, FIRST_VERSION)
    with redis.Redis.from_url(config.redis.url.get_secret_value()) as client:
        for prefix in (layout.documents_prefix, layout.bookkeeping_prefix):
            batch = list(client.scan_iter(match=f"{prefix}*", count=5_000))
            for start in range(0, len(batch), 1_000):
                client.unlink(*batch[start : start + 1_000])

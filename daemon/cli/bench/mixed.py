"""`livevec bench mixed`: live changes while a backfill runs at full speed, through a worker and Temporal."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli import context as given
from daemon.cli.bench.setting import TOKENS, Plot, Tokens
from daemon.cli.context import Json

if TYPE_CHECKING:
    from daemon.bench.latency import Latency
    from daemon.bench.load import LoadRow
    from daemon.bench.mixed import Sighting
    from daemon.cli.bench.steps import Bench, Livevec
    from daemon.cli.console import Steps
    from daemon.settings import Config

_ALONE_S = 10.0
_POLL_S = 0.1
_LAST_TIMEOUT_S = 60.0
_QUIET_S = 2.0


def register(app: typer.Typer) -> None:
    app.command()(mixed)


def mixed(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=500, max=1_000_000, help="Rows of the backfill.")] = 10_000,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="Live inserts a second.")] = 50.0,
    tokens: Tokens = TOKENS,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure live changes beside a backfill at full speed, and the backfill beside live changes.

    The rows are backfilled three times into an index that was emptied before: alone, beside live inserts, alone
    again. Starts a worker of its own; makes and removes what `bench latency` does.
    """
    from daemon.bench import ceiling, plots
    from daemon.bench.mixed import during, mixed_report, speed
    from daemon.bench.throughput import measure_copy
    from daemon.cli import console
    from daemon.cli.bench import tables as bench_tables
    from daemon.cli.bench.steps import livevec_running, load_rows, prepared, progress

    plots.check(plot)
    config = given.resolved(context)
    with console.Steps() as steps:
        load = load_rows(steps, tokens, rows + round(rate * (_ALONE_S + _seconds_max(rows))))
        table, live = load[:rows], iter(load[rows:])
        with prepared(config, steps) as bench, livevec_running(bench, steps) as livevec:
            measure_copy(livevec, table, progress(steps))
            before = _Live(bench, livevec, live, rate)
            before.run(lambda: time.sleep(_ALONE_S))
            with _worker(bench, steps) as own:
                first = speed(_backfill(own, livevec, steps, "alone"))
                beside = _Live(bench, livevec, live, rate)
                seen = beside.run(lambda: _backfill(own, livevec, steps, "beside live changes"))
                last = speed(_backfill(own, livevec, steps, "alone again"))
                # While everything that a backfill needs is there, and idle.
                with steps.step("measure the embedder alone"):
                    bodies = [row.text for row in table]
                    alone = ceiling.texts_per_s(config.embedding, bodies[: rows // 5], bodies)
    report = mixed_report(
        rows,
        tokens,
        rate,
        during(beside.latencies, seen[0].at_s, seen[-1].at_s),
        during(before.latencies, 0.0, float("inf")),
        (first, last),
        speed(seen),
        alone,
    )
    if plot is not None:
        plots.mixed(
            plot,
            report.live_alone_ms,
            report.live_ms,
            report.backfill_alone_texts_per_s,
            report.backfill_texts_per_s,
        )
    if as_json:
        console.print_json(report)
    else:
        bench_tables.mixed(report)


def _seconds_max(rows: int) -> float:
    """No backfill takes longer: more live rows than this are not made."""
    return 60 + rows / 20


class _Live:
    """Inserts at a steady rate in a thread, while something else is done."""

    def __init__(self, bench: "Bench", livevec: "Livevec", rows: "Iterator[LoadRow]", rate: float) -> None:
        self.latencies: list[Latency] = []
        self._dsn = bench.setting.source.dsn.get_secret_value()
        self._redis_url = bench.setting.config.redis.url.get_secret_value()
        self._livevec = livevec
        self._rows = rows
        self._rate = rate
        self._stop = threading.Event()
        self._inserted: list[str] = []
        self._failure: BaseException | None = None

    def run(self, work: Any) -> Any:
        """The result of `work`; then waits until all that was inserted meanwhile is searchable.

        Raises:
            LivevecError: PostgreSQL refused, or rows did not become searchable.
        """
        from daemon.bench.stored import stored_texts
        from daemon.errors import LivevecError

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
        arrived_at = time.monotonic()
        ends_at = arrived_at + _LAST_TIMEOUT_S
        while missing:
            for one in self._livevec.arrived():
                missing.discard(one.id)
                self.latencies.append(one)
                arrived_at = time.monotonic()
            if time.monotonic() > arrived_at + _QUIET_S:
                # Read by the backfill before their change came: that one then had nothing to embed.
                missing -= stored_texts(self._redis_url, self._livevec.pipeline).keys()
            if time.monotonic() > ends_at:
                raise LivevecError(
                    f"{len(missing)} live rows did not become searchable; see `livevec status`"
                )
            time.sleep(_POLL_S)
        return result

    def _insert(self) -> None:
        import psycopg

        from daemon.bench.load import Table

        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                table = Table(connection, self._livevec.table.name)
                began_s, number = time.monotonic(), 0
                while not self._stop.wait(max(0.0, began_s + number / self._rate - time.monotonic())):
                    row = next(self._rows)
                    table.insert([row], self._rate, lambda _: None)
                    self._inserted.append(str(row.id))
                    number += 1
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._failure = error


@contextmanager
def _worker(bench: "Bench", steps: "Steps") -> "Iterator[Config]":
    """A worker on a task queue of its own; gives the configuration with which its workflows are started."""
    from daemon.bench.toml import to_toml
    from daemon.cli.bench.setting import AS_THE_USER, NAME, free_port
    from daemon.cli.child import ChildProcess
    from daemon.cli.daemon_http import DaemonHttp
    from daemon.config import default_home

    config = bench.setting.daemon(bench.setting.pipelines[0], AS_THE_USER)
    address = f"127.0.0.1:{free_port()}"
    worker = config.temporal.worker.model_copy(
        update={
            "metrics_address": address,
            "sdk_metrics_address": f"127.0.0.1:{free_port()}",
            "deployment": "",
        }
    )
    temporal = config.temporal.model_copy(update={"task_queue": NAME, "worker": worker})
    pipelines = tuple(one.model_copy(update={"reconcile_every_s": 0.0}) for one in config.pipelines)
    config = config.model_copy(update={"temporal": temporal, "pipelines": pipelines})
    path = bench.folder / "worker.toml"
    path.touch(mode=0o600)
    path.write_text(to_toml(config), "utf-8")
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


def _backfill(config: "Config", livevec: "Livevec", steps: "Steps", what: str) -> "Sequence[Sighting]":
    """Empty the index, backfill it, and tell how far it was when.

    Raises:
        WorkflowError: Temporal refused, or the backfill failed.
    """
    _forget(config, livevec.pipeline)
    step = f"backfill {what}"
    steps.news(step)
    seen = asyncio.run(_watched(config, livevec.pipeline, steps, step))
    steps.news(step, f"{seen[-1].rows:,} rows", end=True)
    return seen


async def _watched(config: "Config", name: str, steps: "Steps", step: str) -> "list[Sighting]":
    from daemon.bench.mixed import Sighting
    from workflows import client as temporal
    from workflows.backfill.contract import Target
    from workflows.backfill.workflow import Backfill, BackfillOrder, BackfillResult, workflow_id
    from workflows.progress import Progress

    seen: list[Sighting] = []

    def tell(progress: Progress) -> None:
        seen.append(Sighting(time.time(), progress.done))
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
        await temporal.follow(handle, tell, BackfillResult, _POLL_S)
    except BaseException:
        await handle.terminate("the measurement ended")
        raise
    return seen


def _forget(config: "Config", pipeline: str) -> None:
    """Let the index lose every document, and with them what it knew of their versions."""
    import redis

    from daemon.index.layout import Layout
    from daemon.index.registry import FIRST_VERSION

    layout = Layout(pipeline, FIRST_VERSION)
    with redis.Redis.from_url(config.redis.url.get_secret_value()) as client:
        for prefix in (layout.documents_prefix, layout.bookkeeping_prefix):
            batch = list(client.scan_iter(match=f"{prefix}*", count=5_000))
            for start in range(0, len(batch), 1_000):
                client.unlink(*batch[start : start + 1_000])

"""`livevec demo`: everything, live, with one command."""

import asyncio
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live

from daemon.bench.percentiles import STAGES, percentiles_ms
from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.child import DaemonChild
from daemon.cli.connector import apply_source
from daemon.cli.console import Steps
from daemon.cli.context import Json
from daemon.cli.daemon_http import DaemonHttp, Follower
from daemon.cli.demo.steps import Catalog, Editor, FoundAgain, catalog_of, documents, find_a_fresh_text
from daemon.cli.stack import is_up, reporter
from daemon.config import default_home, load, resolve_local
from daemon.errors import LivevecError
from daemon.settings import PostgresSource
from deploy.local.artifacts import default_cache
from deploy.local.corpus import texts
from deploy.local.home import Addresses
from deploy.local.stack import Stack

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INDEX_TIMEOUT_S = 900.0
_REFRESH_S = 0.5
_SAMPLES_SHOWN = 5_000
_PLAIN_REFRESH_S = 5.0


class _Stopped(Exception):
    """A signal asked the demonstration to end."""


def demo(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="End after the search instead of staying up.")] = False,
    rows: Annotated[int, typer.Option(min=100, max=100_000, help="Rows of the table.")] = 10_000,
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Edits a second.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of edits before the search.")] = 15.0,
    as_json: Json = False,
) -> None:
    """Start the embedded stack, mirror a table of real texts, edit it, and show how fresh the index is.

    Stays up until Ctrl-C, which stops every process that it started.
    """
    shown = False
    with _stopped_by_signals(), ExitStack() as started:
        try:
            running = Demonstration(context, started, rows, rate)
            result = running.play(seconds)
            shown = True
            if as_json:
                console.print_json(result)
            if not once:
                console.err.print("edits continue; Ctrl-C stops everything that this command started")
                running.watch(None)
        except _Stopped:
            console.err.print("stopping")
            if not shown:
                raise typer.Exit(130) from None
        finally:
            # A second Ctrl-C must not leave a process behind.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)


class Demonstration:
    """One run of the demonstration; what it starts is registered in `started`."""

    def __init__(self, context: typer.Context, started: ExitStack, rows: int, rate: float) -> None:
        self._began_s = time.monotonic()
        self._path = _configuration(context)
        written = load(self._path)
        self._pipeline, self._source = catalog_of(written)
        self._ports = written.local.ports
        self._started = started
        self._rows = rows
        self._rate = rate

    def play(self, seconds: float) -> dict[str, Any]:
        """Set up, edit for `seconds`, search; return what --json prints."""
        with console.Steps() as steps:
            table_rows = self._set_up(steps)
        self._follower = Follower(self._http, self._http.status()["samples"], _SAMPLES_SHOWN)
        dsn, table = self._addresses.postgres_dsn, self._pipeline.table
        self._editor = Editor(dsn, table, self._entries, self._rate)
        self._started.enter_context(self._editor.running())
        edits_began_s = time.monotonic()
        self.watch(edits_began_s + seconds)
        took = {**steps.seconds, "edits": round(time.monotonic() - edits_began_s, 3)}
        self._follower.fetch()
        samples = list(self._follower.samples)
        answer = self._search()
        self._show_addresses()
        return {
            "rows": table_rows,
            "commit_to_searchable_ms": asdict(percentiles_ms([sample["total"] for sample in samples])),
            "stages": {
                stage: asdict(percentiles_ms([sample[stage] for sample in samples])) for stage in STAGES
            },
            "search": asdict(answer),
            "seconds": {**took, "total": round(time.monotonic() - self._began_s, 3)},
        }

    def _set_up(self, steps: Steps) -> int:
        """Start servers, table, connector and daemon; return the number of rows once all of them are indexed."""
        self._addresses = self._start_stack(steps)
        config = self._config = resolve_local(load(self._path))
        self._entries = texts(default_cache(), reporter(steps))[: self._rows]
        dsn, table = self._addresses.postgres_dsn, self._pipeline.table
        self._catalog = Catalog(dsn, table)
        self._started.callback(self._catalog.close)
        step = f"load {table}"
        steps.news(step)
        rows = self._catalog.fill(self._entries, lambda done, total: steps.news(step, "rows", done, total))
        steps.news(step, f"{rows:,} rows", end=True)
        source = config.source(self._source.name)
        assert isinstance(source, PostgresSource)
        apply_source(config, source, steps)
        self._start_daemon(steps)
        self._await_index(steps, rows)
        return rows

    def _start_stack(self, steps: Steps) -> Addresses:
        stack = Stack(default_home(), self._ports)
        if is_up(stack):
            with steps.step("stack", "was up already"):
                return stack.up(detach=False)
        self._started.callback(stack.down)
        return stack.up(reporter(steps), detach=False)

    def _start_daemon(self, steps: Steps) -> None:
        address = self._config.telemetry.address
        self._child: DaemonChild | None = None
        self._http = DaemonHttp(address)
        self._started.callback(self._http.close)
        if self._http.ready() is not None:
            steps.news("daemon", f"a daemon runs already at {self._http.url}", end=True)
            return
        log = default_home() / "logs" / "daemon.log"
        with steps.step("daemon", f"log: {log}"):
            self._child = self._started.enter_context(DaemonChild(self._path, log, address))
            self._child.wait_ready()

    def _await_index(self, steps: Steps, rows: int) -> None:
        step = f"index {self._pipeline.name}"
        ends_at = time.monotonic() + _INDEX_TIMEOUT_S
        while (done := documents(self._addresses.redis_url, self._pipeline.name)) < rows:
            steps.news(step, "documents", done, rows)
            if self._child is not None:
                self._child.check()
            if time.monotonic() > ends_at:
                raise LivevecError(
                    f"only {done:,} of {rows:,} rows were indexed in {_INDEX_TIMEOUT_S:g} s; see `livevec status`"
                )
            time.sleep(_REFRESH_S / 2)
        steps.news(step, f"{done:,} documents", rows, rows, end=True)

    def watch(self, until_s: float | None) -> None:
        """Show live percentiles until that time of the monotonic clock, or, for None, until a signal."""
        terminal = console.err.is_terminal
        pause_s = _REFRESH_S if terminal else _PLAIN_REFRESH_S
        with Live(console=console.err, auto_refresh=False, transient=until_s is None) as live:
            while until_s is None or time.monotonic() < until_s:
                time.sleep(pause_s if until_s is None else max(0.0, min(pause_s, until_s - time.monotonic())))
                self._editor.check()
                if self._child is not None:
                    self._child.check()
                self._follower.fetch()
                table = _percentile_table(self._follower.samples, self._editor.edits)
                if terminal:
                    live.update(table, refresh=True)
                elif until_s is not None:
                    console.err.print(table)

    def _search(self) -> FoundAgain:
        row = self._entries[len(self._entries) // 2]
        answer = asyncio.run(find_a_fresh_text(self._config, self._pipeline, self._catalog, row))
        console.err.print()
        console.err.print(f"row {row.id} was changed; a search for its new meaning:", markup=False)
        console.err.print(f"  {answer.query}", style="bold", markup=False)
        table = console.table("distance", "id", "text")
        for hit in answer.hits:
            style = "green" if hit.id == str(row.id) else None
            table.add_row(f"{hit.distance:.4f}", hit.id, console.plain(hit.text), style=style)
        console.err.print(table)
        console.err.print(f"found {answer.found_after_ms:.1f} ms after its commit\n", style="bold green")
        return answer

    def _show_addresses(self) -> None:
        addresses = self._addresses
        table = console.table("to look at", "address")
        for name, address in (
            ("Temporal", addresses.temporal_ui_url),
            ("the daemon's metrics", addresses.metrics_url),
            ("the daemon's state", f"{self._http.url}/status.json"),
            ("Kafka Connect", f"{addresses.connect_url}/connectors?expand=status"),
            ("PostgreSQL", addresses.postgres_dsn),
            ("Redis", addresses.redis_url),
            ("Kafka", addresses.kafka_bootstrap_servers),
            ("a search of your own", f'livevec search {self._pipeline.name} "a stringed instrument"'),
        ):
            table.add_row(name, console.plain(address))
        console.err.print(table)


def _percentile_table(samples: Collection[dict[str, Any]], edits: int) -> Group:
    """Return a table of commit to searchable, and its stages, over the latest edits."""
    title = f"{edits:,} edits; the latest {len(samples):,}"
    table = console.table("ms", "p50", "p95", "p99", "max")
    for name, key in (("commit to searchable", "total"), *((f"  {stage}", stage) for stage in STAGES)):
        part = percentiles_ms([sample[key] for sample in samples])
        table.add_row(name, *part.figures(), style="bold" if key == "total" else None)
    return console.titled(title, table)


def _configuration(context: typer.Context) -> Path:
    """Return the path of the configuration, or, where there is none, of the reference that livevec is shipped with."""
    path = given.config_path(context)
    if given.is_given(context) or path.is_file():
        return path
    return Path(str(files("daemon") / "reference.toml"))


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise _Stopped in the block on SIGINT, SIGTERM or SIGHUP (the terminal was closed)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

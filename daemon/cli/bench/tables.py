"""The tables that measurements print."""

from collections.abc import Sequence

from daemon.bench.mixed import MixedReport
from daemon.bench.report import (
    LagReport,
    LatencyReport,
    PoliciesReport,
    SkipReport,
    SoakReport,
    ThroughputReport,
)
from daemon.bench.soak import SoakWindow
from daemon.cli import console

_WINDOWS_SHOWN = 20


def throughput(report: ThroughputReport) -> None:
    title = f"one COPY of {report.rows:,} rows of about {report.tokens} tokens"
    table = console.table("", "texts/s", "livevec is")
    table.add_row("livevec", f"{report.texts_per_s:,.0f}", "")
    table.add_row("floor", f"{report.floor_texts_per_s:,.0f}", f"{report.floor_ratio:.2f} x")
    table.add_row("embedder alone", f"{report.ceiling_texts_per_s:,.0f}", f"{report.ratio:.2f} x")
    table.add_row("daemon's CPU", f"{report.daemon_cpu_ms_per_change:.3f} ms a change", "")
    console.out.print(console.titled(title, table))


def mixed(report: MixedReport) -> None:
    title = f"{report.live_rate:g} live inserts/s beside a backfill of {report.rows:,} rows, {report.tokens} tokens"
    table = console.table("", "p50", "p95", "p99", "max", "changes")
    for name, found in (("live alone, ms", report.live_alone_ms), ("beside it, ms", report.live_ms)):
        figures = (f"{value:.1f}" for value in (found.p50, found.p95, found.p99, found.max))
        table.add_row(name, *figures, f"{found.count:,}")
    console.out.print(console.titled(title, table))
    speeds = console.table("backfill", "texts/s", "of it")
    speeds.add_row("alone", f"{report.backfill_alone_texts_per_s:,.0f}", "")
    speeds.add_row("beside live changes", f"{report.backfill_texts_per_s:,.0f}", f"{report.ratio:.2f}")
    speeds.add_row(
        "the embedder alone", f"{report.ceiling_texts_per_s:,.0f}", f"backfill {report.ceiling_ratio:.2f}"
    )
    console.out.print(speeds)


def skip(report: SkipReport) -> None:
    table = console.table("", "")
    table.add_row("changes/s", f"{report.changes_per_s:,.0f}")
    table.add_row("daemon's CPU", f"{report.daemon_cpu_ms_per_change:.3f} ms a change")
    table.add_row("changes/s on one core", f"{report.changes_per_s_per_core:,.0f}")
    table.add_row("version rule", f"{report.guard_us_per_write:.1f} us a write more than a plain HSET")
    console.out.print(console.titled(f"one UPDATE of {report.rows:,} rows that changes nothing", table))


def latency(report: LatencyReport) -> None:
    title = f"commit to searchable, {report.livevec_ms.count:,} rows at {report.rate:g}/s, ms"
    table = console.table("", "p50", "p95", "p99", "max")
    for name, found in (("livevec", report.livevec_ms), ("floor", report.floor_ms)):
        if found is not None:
            table.add_row(name, *(f"{value:.1f}" for value in (found.p50, found.p95, found.p99, found.max)))
    if report.ratio is not None:
        table.add_row("ratio", f"{report.ratio.p50:.2f}", "", f"{report.ratio.p99:.2f}", "")
    for stage, part in report.stages_ms.items():
        table.add_row(f"  {stage}", *(f"{value:.1f}" for value in (part.p50, part.p95, part.p99)), "")
    console.out.print(console.titled(title, table))


def policies(report: PoliciesReport) -> None:
    title = (
        f"{report.fixed.rows:,} rows at {report.rate:g}/s, the embedder {report.slow_factor:g} x slower for "
        f"{report.slow_s:g} s; late is over {report.target_ms:g} ms"
    )
    table = console.table("", "late", "late by, ms", "p50 ms", "p99 ms", "recovered, s", "lost", "batches")
    for name, found in (("fixed", report.fixed), ("aimd", report.aimd), ("deadline", report.deadline)):
        table.add_row(
            name,
            f"{found.over_target:,}",
            f"{found.over_target_ms_sum:,.0f}",
            f"{found.p50_ms:.1f}",
            f"{found.p99_ms:.1f}",
            "never" if found.recovery_s is None else f"{found.recovery_s:.1f}",
            str(found.lost),
            f"{found.batches:,}",
        )
    console.out.print(console.titled(title, table))


def soak(report: SoakReport) -> None:
    statements = report.inserts + report.updates + report.deletes
    title = (
        f"{statements:,} statements at {report.rate:g}/s ({report.inserts:,} inserts, {report.updates:,} updates, "
        f"{report.deletes:,} deletes); {report.lost} lost"
    )
    table = console.table("after, s", "p50 ms", "p95 ms", "p99 ms", "max ms", "embedded", "RSS MB", "queue")
    for window in _thinned(report.windows):
        table.add_row(
            f"{window.at_s:.0f}",
            *(f"{value:.1f}" for value in (window.p50_ms, window.p95_ms, window.p99_ms, window.max_ms)),
            f"{window.count:,}",
            f"{window.rss_mb:.0f}",
            f"{window.queue_changes:,}",
        )
    live = report.live_ms
    table.add_row(
        "all",
        *(f"{value:.1f}" for value in (live.p50, live.p95, live.p99, live.max)),
        f"{live.count:,}",
        f"{report.rss_mb_max:.0f}",
        f"{report.queue_changes_max:,}",
    )
    console.out.print(console.titled(title, table))


def lag(report: LagReport) -> None:
    title = f"{report.changes:,} changes of about {report.record_bytes:,} bytes waited when the daemon was started"
    table = console.table("", "")
    table.add_row("RSS at the start", f"{report.rss_mb_first:.0f} MB")
    table.add_row("RSS at most", f"{report.rss_mb_max:.0f} MB")
    table.add_row("queue at most", f"{report.queue_changes_max:,} changes")
    table.add_row("searchable", f"{report.done:,} after {report.seconds:.0f} s")
    console.out.print(console.titled(title, table))


def _thinned(windows: Sequence[SoakWindow]) -> Sequence[SoakWindow]:
    """Not more than fit on a screen."""
    return windows[:: -(-len(windows) // _WINDOWS_SHOWN)]

"""The tables that the measurements print."""

from collections.abc import Sequence

from daemon.cli import console
from tests.bench.lag import LagReport
from tests.bench.mixed import MixedReport
from tests.bench.policies import PoliciesReport
from tests.bench.skip import SkipReport
from tests.bench.soak import SoakReport, SoakWindow

Printable = SkipReport | PoliciesReport | SoakReport | LagReport | MixedReport
_WINDOWS_SHOWN = 20


def show(report: Printable) -> None:
    """Print a report as a table."""
    match report:
        case SkipReport():
            _skip(report)
        case PoliciesReport():
            _policies(report)
        case SoakReport():
            _soak(report)
        case LagReport():
            _lag(report)
        case MixedReport():
            _mixed(report)


def _mixed(report: MixedReport) -> None:
    title = f"{report.live_rate:g} live inserts/s beside a backfill of {report.rows:,} rows, {report.tokens} tokens"
    table = console.table("", "p50", "p95", "p99", "max", "changes")
    for name, part in (("live alone, ms", report.live_alone_ms), ("beside it, ms", report.live_ms)):
        figures = (f"{value:.1f}" for value in (part.p50, part.p95, part.p99, part.max))
        table.add_row(name, *figures, f"{part.count:,}")
    console.out.print(console.titled(title, table))
    speeds = console.table("backfill", "texts/s", "of it")
    speeds.add_row("alone", f"{report.backfill_alone_texts_per_s:,.0f}", "")
    speeds.add_row("beside live changes", f"{report.backfill_texts_per_s:,.0f}", f"{report.ratio:.2f}")
    speeds.add_row(
        "the embedder alone", f"{report.ceiling_texts_per_s:,.0f}", f"backfill {report.ceiling_ratio:.2f}"
    )
    console.out.print(speeds)


def _skip(report: SkipReport) -> None:
    table = console.table("", "")
    table.add_row("changes/s", f"{report.changes_per_s:,.0f}")
    table.add_row("daemon's CPU", f"{report.daemon_cpu_ms_per_change:.3f} ms a change")
    table.add_row("changes/s on one core", f"{report.changes_per_s_per_core:,.0f}")
    table.add_row("version rule", f"{report.guard_us_per_write:.1f} us a write more than a plain HSET")
    console.out.print(console.titled(f"one UPDATE of {report.rows:,} rows that changes nothing", table))


def _policies(report: PoliciesReport) -> None:
    title = (
        f"{report.fixed.rows:,} rows at {report.rate:g}/s, the embedder {report.slow_factor:g} x slower for "
        f"{report.slow_s:g} s; late is over {report.target_ms:g} ms"
    )
    table = console.table("", "late", "late by, ms", "p50 ms", "p99 ms", "recovered, s", "lost", "batches")
    for name, policy in (("fixed", report.fixed), ("aimd", report.aimd), ("deadline", report.deadline)):
        table.add_row(
            name,
            f"{policy.over_target:,}",
            f"{policy.over_target_ms_sum:,.0f}",
            f"{policy.p50_ms:.1f}",
            f"{policy.p99_ms:.1f}",
            "never" if policy.recovery_s is None else f"{policy.recovery_s:.1f}",
            str(policy.lost),
            f"{policy.batches:,}",
        )
    console.out.print(console.titled(title, table))


def _soak(report: SoakReport) -> None:
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


def _lag(report: LagReport) -> None:
    title = f"{report.changes:,} changes of about {report.record_bytes:,} bytes waited when the daemon was started"
    table = console.table("", "")
    table.add_row("RSS at the start", f"{report.rss_mb_first:.0f} MB")
    table.add_row("RSS at most", f"{report.rss_mb_max:.0f} MB")
    table.add_row("queue at most", f"{report.queue_changes_max:,} changes")
    table.add_row("searchable", f"{report.done:,} after {report.seconds:.0f} s")
    console.out.print(console.titled(title, table))


def _thinned(windows: Sequence[SoakWindow]) -> Sequence[SoakWindow]:
    """Return no more windows than fit on a screen."""
    return windows[:: -(-len(windows) // _WINDOWS_SHOWN)]

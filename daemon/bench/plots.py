"""Plots of measurements: SVG, or PNG where the file's name ends so. One style, readable on light and on dark pages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.bench.percentiles import STAGES, Percentiles, percentiles_ms
from daemon.bench.policies import PolicyRun, batches
from daemon.bench.report import LagReport, LatencyReport, SoakReport, ThroughputReport
from daemon.errors import ConfigError

_SUFFIXES = (".svg", ".png")
_INK = "#7d7d7d"
"""As far from white as from black: the page shows through."""
_COLOURS = ("#3a86c8", "#e07b39", "#3aa76d", "#a05fb4", "#c9a227")
_LIVEVEC, _FLOOR, _CEILING, *_ = _COLOURS
_POLICY_COLOURS = {"fixed": "#a05fb4", "aimd": "#e07b39", "deadline": "#3a86c8"}
_STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "livevec",
    "savefig.transparent": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}
_DPI = 150
_MOMENT_S = 0.5
"""Latencies over time are drawn as the greatest of each such moment."""


def check(path: Path | None) -> None:
    """Whether a plot can be drawn there, before a long measurement begins.

    Raises:
        ConfigError: it cannot.
    """
    if path is None:
        return
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--plot {path}: the name must end in {' or '.join(_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}; make it first")
    _pyplot()


def latency(path: Path, reports: Sequence[LatencyReport]) -> None:
    """Stages as stacked percentiles at the first rate; with several rates, also latency against rate."""
    with _figure(path, 1, 2 if len(reports) > 1 else 1, width=11 if len(reports) > 1 else 6) as axes:
        _stages(axes[0], reports[0])
        if len(reports) > 1:
            _rates(axes[1], sorted(reports, key=lambda one: one.rate))


def throughput(path: Path, report: ThroughputReport) -> None:
    """livevec between the barest loop and the embedder alone."""
    bars = (
        ("barest loop", report.floor_texts_per_s, _FLOOR),
        ("livevec", report.texts_per_s, _LIVEVEC),
        ("embedder alone", report.ceiling_texts_per_s, _CEILING),
    )
    with _figure(path, 1, 1, width=5.5) as axes:
        _bars(axes[0], bars, "texts/s", "{:,.0f}")
        axes[0].set_title(f"one COPY of {report.rows:,} rows of about {report.tokens} tokens")


def policies(path: Path, runs: Sequence[PolicyRun], target_ms: float) -> None:
    """Latency over time, and batch size against latency: a row for each policy; the slow-down is shaded."""
    with _figure(path, len(runs), 2, width=11, height=2.2 * len(runs)) as axes:
        for number, run in enumerate(runs):
            colour = _POLICY_COLOURS.get(run.policy, _LIVEVEC)
            began_s = min((sample.committed_at_s for sample in run.samples), default=run.slow_began_s)
            left, right = axes[2 * number], axes[2 * number + 1]
            commits = [(one.committed_at_s - began_s, 1000 * one.total_s) for one in run.samples]
            left.plot(*_peaks(commits), color=colour)
            left.axhline(target_ms, color=_INK, linewidth=0.8, linestyle="--")
            if run.samples:
                left.set_yscale("log")
            left.set_ylabel("latency, ms")
            left.set_title(f"{run.policy}: commit to searchable", loc="left")
            _batches(right, run, began_s, colour)
            for axis in (left, right):
                axis.axvspan(
                    run.slow_began_s - began_s, run.slow_ended_s - began_s, color=_INK, alpha=0.15, lw=0
                )
        _share_scale(axes[::2])
        for axis in axes[-2:]:
            axis.set_xlabel("s (shaded: the embedder is slow)")


def soak(path: Path, report: SoakReport, target_ms: float) -> None:
    """Latency, memory and queue, window by window."""
    at_min = [window.at_s / 60 for window in report.windows]
    with _figure(path, 3, 1, width=8, height=6) as axes:
        for name, colour in (("p50", _CEILING), ("p95", _LIVEVEC), ("p99", _FLOOR)):
            axes[0].plot(
                at_min, [getattr(one, f"{name}_ms") for one in report.windows], color=colour, label=name
            )
        axes[0].axhline(target_ms, color=_INK, linewidth=0.8, linestyle="--", label="target")
        axes[0].set_ylabel("latency, ms")
        axes[0].legend(ncols=4, loc="upper right")
        axes[0].set_title(
            f"{report.inserts + report.updates + report.deletes:,} statements at {report.rate:g}/s; "
            f"{report.lost} lost",
            loc="left",
        )
        axes[1].plot(at_min, [one.rss_mb for one in report.windows], color=_LIVEVEC)
        axes[1].set_ylabel("RSS of the daemon, MB")
        axes[2].plot(at_min, [one.queue_changes for one in report.windows], color=_LIVEVEC)
        axes[2].set_ylabel("changes waiting")
        axes[2].set_xlabel("minutes")
        for axis in axes:
            axis.set_ylim(bottom=0)


def lag(path: Path, report: LagReport) -> None:
    """Memory and queue while the daemon catches up."""
    at_s = [sample.at_s for sample in report.samples]
    with _figure(path, 2, 1, width=8, height=4.5) as axes:
        axes[0].plot(at_s, [sample.rss_mb for sample in report.samples], color=_LIVEVEC)
        axes[0].set_ylabel("RSS of the daemon, MB")
        axes[0].set_title(f"{report.changes:,} changes waited at the start", loc="left")
        axes[1].plot(at_s, [sample.queue_changes for sample in report.samples], color=_LIVEVEC)
        axes[1].set_ylabel("changes in its queue")
        axes[1].set_xlabel("s")
        for axis in axes:
            axis.set_ylim(bottom=0)


def mixed(
    path: Path, alone: Percentiles, during: Percentiles, backfill_alone_per_s: float, backfill_per_s: float
) -> None:
    """Live latency alone and during a backfill, and the backfill's speed alone and beside the live load."""
    with _figure(path, 1, 2, width=9) as axes:
        names = ("p50", "p95", "p99")
        for offset, label, found, colour in (
            (-0.2, "alone", alone, _LIVEVEC),
            (0.2, "during a backfill", during, _FLOOR),
        ):
            values = [getattr(found, name) for name in names]
            drawn = axes[0].bar([at + offset for at in range(3)], values, 0.36, color=colour, label=label)
            axes[0].bar_label(drawn, fmt="{:.0f}", padding=2)
        axes[0].set_xticks(range(3), names)
        axes[0].set_ylabel("commit to searchable, ms")
        axes[0].set_title("live changes", loc="left")
        axes[0].legend()
        bars = (("alone", backfill_alone_per_s, _LIVEVEC), ("beside live changes", backfill_per_s, _FLOOR))
        _bars(axes[1], bars, "texts/s", "{:,.0f}")
        axes[1].set_title("backfill", loc="left")


def _stages(axis: Any, report: LatencyReport) -> None:
    names = ("p50", "p95", "p99")
    bottoms = [0.0, 0.0, 0.0]
    for stage, colour in zip(STAGES, _COLOURS, strict=True):
        values = [getattr(report.stages_ms[stage], name) for name in names]
        axis.bar(names, values, 0.55, bottom=bottoms, color=colour, label=stage)
        bottoms = [below + value for below, value in zip(bottoms, values, strict=True)]
    totals = [getattr(report.livevec_ms, name) for name in names]
    # Percentiles of stages do not add up to that of the whole: one row is rarely late in all of them.
    axis.plot(names, totals, "_", color=_INK, markersize=34, markeredgewidth=2, label="whole")
    if report.floor_ms is not None:
        floors = [getattr(report.floor_ms, name) for name in names]
        axis.plot(names, floors, "x", color=_INK, markersize=7, label="barest loop")
    axis.set_ylabel("ms")
    axis.set_title(f"commit to searchable by stage, {report.rate:g} rows/s", loc="left")
    # Beside the bars, in the order in which they lie on one another.
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _rates(axis: Any, reports: Sequence[LatencyReport]) -> None:
    rates = [report.rate for report in reports]
    lines = [("livevec", _LIVEVEC, [report.livevec_ms for report in reports])]
    floors = [report.floor_ms for report in reports if report.floor_ms is not None]
    if len(floors) == len(reports):
        lines.append(("barest loop", _FLOOR, floors))
    for label, colour, found in lines:
        axis.plot(rates, [one.p50 for one in found], "o-", color=colour, label=f"{label} p50")
        axis.plot(rates, [one.p99 for one in found], "o--", color=colour, label=f"{label} p99")
    axis.set_xlabel("rows/s")
    axis.set_ylabel("ms")
    axis.set_ylim(bottom=0)
    axis.set_title("commit to searchable against rate", loc="left")
    axis.legend()


def _batches(axis: Any, run: PolicyRun, began_s: float, colour: str) -> None:
    found = batches(run.samples)
    sizes = [(batch.embedded_at_s - began_s, float(batch.size)) for batch in found]
    axis.plot(*_peaks(sizes), color=colour)
    axis.set_ylabel("batch size")
    axis.set_ylim(bottom=0)
    axis.set_title(f"{run.policy}: batch size, and p99 of its moment", loc="left")
    other = axis.twinx()
    other.plot(
        *_peaks([(at_s, 1000 * b.latency_s) for (at_s, _), b in zip(sizes, found, strict=True)], 99),
        color=_INK,
        lw=0.9,
    )
    other.set_ylabel("p99, ms")
    other.set_yscale("log")
    other.grid(visible=False)


def _peaks(points: Sequence[tuple[float, float]], percent: int = 100) -> tuple[list[float], list[float]]:
    """Of each moment, the greatest value (or the p99)."""
    moments: dict[int, list[float]] = {}
    for at_s, value in points:
        moments.setdefault(int(at_s / _MOMENT_S), []).append(value)
    ordered = sorted(moments)
    found = {moment: percentiles_ms([value / 1000 for value in moments[moment]]) for moment in ordered}
    values = [found[moment].p99 if percent == 99 else found[moment].max for moment in ordered]
    return [(moment + 0.5) * _MOMENT_S for moment in ordered], values


def _bars(axis: Any, bars: Sequence[tuple[str, float, str]], unit: str, label: str) -> None:
    names, values, colours = zip(*bars, strict=True)
    axis.bar_label(axis.bar(names, values, 0.55, color=colours), fmt=label, padding=2)
    axis.set_ylabel(unit)
    axis.grid(visible=False, axis="x")


def _share_scale(axes: Sequence[Any]) -> None:
    lows, highs = zip(*(axis.get_ylim() for axis in axes), strict=True)
    for axis in axes:
        axis.set_ylim(min(lows), max(highs))


@contextmanager
def _figure(path: Path, rows: int, columns: int, *, width: float, height: float = 3.6) -> Iterator[list[Any]]:
    """Axes row by row; written to `path` at the end."""
    pyplot = _pyplot()
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
        )
        try:
            yield [axis for row in axes for axis in row]
            figure.savefig(path, dpi=_DPI)
        finally:
            pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "plots need matplotlib, which is not installed; install livevec[local], or leave --plot out"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot

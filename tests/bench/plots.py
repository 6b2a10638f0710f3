"""Plots of measurements, from their results: SVG, or PNG where the file's name ends so.

There is one style, readable on light and on dark pages.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from daemon.bench.percentiles import STAGES
from daemon.bench.report import LatencyReport, LatencyReports, ThroughputReport
from daemon.errors import ConfigError
from tests.bench.lag import LagReport
from tests.bench.mixed import MixedReport
from tests.bench.policies import Moment, PoliciesReport, PolicyReport
from tests.bench.skip import SkipReport
from tests.bench.soak import SoakReport

_SUFFIXES = (".svg", ".png")
_INK = "#7d7d7d"
"""As far from white as from black, since the page shows through."""
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
Result = (
    LatencyReports
    | LatencyReport
    | ThroughputReport
    | PoliciesReport
    | SoakReport
    | LagReport
    | MixedReport
    | SkipReport
)
"""What a measurement may report."""


def check(path: Path | None) -> None:
    """Check that a plot can be drawn at `path`, before a long measurement begins.

    Raises:
        ConfigError: it cannot.
    """
    if path is None:
        return
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{path} cannot be drawn: a plot's name must end in {' or '.join(_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be drawn: there is no folder {path.parent}; make it first")
    _pyplot()


def read(path: Path) -> Result:
    """Read what a measurement printed with --json.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        result: Result = TypeAdapter(Result).validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is no result of a measurement; write one with --json") from error
    return result


def draw(path: Path, result: Result) -> None:
    """Draw the result of a measurement.

    Raises:
        ConfigError: there is no plot of such a measurement.
    """
    match result:
        case LatencyReports():
            _latency(path, result.rates)
        case LatencyReport():
            _latency(path, [result])
        case ThroughputReport():
            _throughput(path, result)
        case PoliciesReport():
            _policies(path, result)
        case SoakReport():
            _soak(path, result)
        case LagReport():
            _lag(path, result)
        case MixedReport():
            _mixed(path, result)
        case SkipReport():
            raise ConfigError("there is no plot of `skip`: it measures single figures")


def _latency(path: Path, reports: Sequence[LatencyReport]) -> None:
    """Draw the stages as stacked percentiles at the first rate; with several rates, also latency against rate."""
    with _figure(path, 1, 2 if len(reports) > 1 else 1, width=11 if len(reports) > 1 else 6) as axes:
        _stages(axes[0], reports[0])
        if len(reports) > 1:
            _rates(axes[1], sorted(reports, key=lambda report: report.rate))


def _throughput(path: Path, report: ThroughputReport) -> None:
    """Draw livevec between the barest loop and the embedder alone."""
    bars = (
        ("barest loop", report.floor_texts_per_s, _FLOOR),
        ("livevec", report.texts_per_s, _LIVEVEC),
        ("embedder alone", report.ceiling_texts_per_s, _CEILING),
    )
    with _figure(path, 1, 1, width=5.5) as axes:
        _bars(axes[0], bars, "texts/s", "{:,.0f}")
        axes[0].set_title(f"one COPY of {report.rows:,} rows of about {report.tokens} tokens")


def _policies(path: Path, report: PoliciesReport) -> None:
    """Draw latency over time, and batch size against latency: a row for each policy; the slow-down is shaded."""
    policies = {"fixed": report.fixed, "aimd": report.aimd, "deadline": report.deadline}
    with _figure(path, len(policies), 2, width=11, height=2.2 * len(policies)) as axes:
        for number, (name, policy) in enumerate(policies.items()):
            colour = _POLICY_COLOURS[name]
            left, right = axes[2 * number], axes[2 * number + 1]
            left.plot(*_series(policy.moments, "latency_ms_max"), color=colour)
            left.axhline(report.target_ms, color=_INK, linewidth=0.8, linestyle="--")
            if policy.moments:
                left.set_yscale("log")
            left.set_ylabel("latency, ms")
            left.set_title(f"{name}: commit to searchable", loc="left")
            _batches(right, name, policy, colour)
            for axis in (left, right):
                axis.axvspan(policy.slow_began_s, policy.slow_ended_s, color=_INK, alpha=0.15, lw=0)
        _share_scale(axes[::2])
        for axis in axes[-2:]:
            axis.set_xlabel("s (shaded: the embedder is slow)")


def _soak(path: Path, report: SoakReport) -> None:
    """Draw latency, memory and queue, window by window."""
    at_min = [window.at_s / 60 for window in report.windows]
    with _figure(path, 3, 1, width=8, height=6) as axes:
        for name, colour in (("p50", _CEILING), ("p95", _LIVEVEC), ("p99", _FLOOR)):
            values = [getattr(window, f"{name}_ms") for window in report.windows]
            axes[0].plot(at_min, values, color=colour, label=name)
        axes[0].axhline(report.target_ms, color=_INK, linewidth=0.8, linestyle="--", label="target")
        axes[0].set_ylabel("latency, ms")
        axes[0].legend(ncols=4, loc="upper right")
        axes[0].set_title(
            f"{report.inserts + report.updates + report.deletes:,} statements at {report.rate:g}/s; "
            f"{report.lost} lost",
            loc="left",
        )
        axes[1].plot(at_min, [window.rss_mb for window in report.windows], color=_LIVEVEC)
        axes[1].set_ylabel("RSS of the daemon, MB")
        axes[2].plot(at_min, [window.queue_changes for window in report.windows], color=_LIVEVEC)
        axes[2].set_ylabel("changes waiting")
        axes[2].set_xlabel("minutes")
        for axis in axes:
            axis.set_ylim(bottom=0)


def _lag(path: Path, report: LagReport) -> None:
    """Draw memory and queue while the daemon catches up."""
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


def _mixed(path: Path, report: MixedReport) -> None:
    """Draw live latency alone and during a backfill, and the backfill's speed alone and beside the live load."""
    with _figure(path, 1, 2, width=9) as axes:
        names = ("p50", "p95", "p99")
        for offset, label, live, colour in (
            (-0.2, "alone", report.live_alone_ms, _LIVEVEC),
            (0.2, "during a backfill", report.live_ms, _FLOOR),
        ):
            values = [getattr(live, name) for name in names]
            drawn = axes[0].bar([at + offset for at in range(3)], values, 0.36, color=colour, label=label)
            axes[0].bar_label(drawn, fmt="{:.0f}", padding=2)
        axes[0].set_xticks(range(3), names)
        axes[0].set_ylabel("commit to searchable, ms")
        axes[0].set_title("live changes", loc="left")
        axes[0].legend()
        bars = (
            ("alone", report.backfill_alone_texts_per_s, _LIVEVEC),
            ("beside live changes", report.backfill_texts_per_s, _FLOOR),
        )
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
    # The percentiles of the stages do not add up to that of the whole: a row is rarely late in all of them.
    axis.plot(names, totals, "_", color=_INK, markersize=34, markeredgewidth=2, label="whole")
    if report.floor_ms is not None:
        floors = [getattr(report.floor_ms, name) for name in names]
        axis.plot(names, floors, "x", color=_INK, markersize=7, label="barest loop")
    axis.set_ylabel("ms")
    axis.set_title(f"commit to searchable by stage, {report.rate:g} rows/s", loc="left")
    # The legend is beside the bars, in the order in which they lie on one another.
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _rates(axis: Any, reports: Sequence[LatencyReport]) -> None:
    rates = [report.rate for report in reports]
    lines = [("livevec", _LIVEVEC, [report.livevec_ms for report in reports])]
    floors = [report.floor_ms for report in reports if report.floor_ms is not None]
    if len(floors) == len(reports):
        lines.append(("barest loop", _FLOOR, floors))
    for label, colour, percentiles in lines:
        axis.plot(rates, [part.p50 for part in percentiles], "o-", color=colour, label=f"{label} p50")
        axis.plot(rates, [part.p99 for part in percentiles], "o--", color=colour, label=f"{label} p99")
    axis.set_xlabel("rows/s")
    axis.set_ylabel("ms")
    axis.set_ylim(bottom=0)
    axis.set_title("commit to searchable against rate", loc="left")
    axis.legend()


def _batches(axis: Any, name: str, policy: PolicyReport, colour: str) -> None:
    axis.plot(*_series(policy.moments, "batch_size_max"), color=colour)
    axis.set_ylabel("batch size")
    axis.set_ylim(bottom=0)
    axis.set_title(f"{name}: batch size, and p99 of its moment", loc="left")
    other = axis.twinx()
    other.plot(*_series(policy.moments, "batch_latency_ms_p99"), color=_INK, lw=0.9)
    other.set_ylabel("p99, ms")
    other.set_yscale("log")
    other.grid(visible=False)


def _series(moments: Sequence[Moment], name: str) -> tuple[list[float], list[float]]:
    """Return the times and the values of one figure, without the moments that have none."""
    points = [(moment.at_s, getattr(moment, name)) for moment in moments]
    return [at_s for at_s, value in points if value is not None], [v for _, v in points if v is not None]


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
    """The axes, row by row; the figure is written to `path` at the end."""
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
            "plots need matplotlib, which is not installed; install livevec[dev], or leave the plot out"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot

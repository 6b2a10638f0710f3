"""Plots: every figure is drawn in both formats, and what cannot be drawn is said before the measurement."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.bench import plots
from daemon.bench.lag import LagSample
from daemon.bench.latency import Latency
from daemon.bench.percentiles import STAGES, percentiles_ms
from daemon.bench.policies import PolicyRun
from daemon.bench.report import lag_report, latency_report, soak_report, throughput_report
from daemon.bench.soak import SoakRun, SoakWindow
from daemon.bench.throughput import Bulk
from daemon.errors import ConfigError

STAGES_S = {"capture": 0.003, "transit": 0.001, "queue": 0.001, "embed": 0.004, "upsert": 0.001}


def latencies(scale: float) -> list[Latency]:
    return [
        Latency(str(n), scale * (0.008 + n * 1e-5), {s: scale * STAGES_S[s] for s in STAGES}, 100 + n / 20)
        for n in range(400)
    ]


def draw_latency(path: Path) -> None:
    plots.latency(
        path, [latency_report(rate, 400, latencies(rate / 100), latencies(rate / 120)) for rate in (100, 300)]
    )


def draw_one_latency(path: Path) -> None:
    plots.latency(path, [latency_report(100, 400, latencies(1), None)])


def draw_throughput(path: Path) -> None:
    plots.throughput(path, throughput_report(14, Bulk(1000, 0.8, 0.1), Bulk(1000, 1.2, 0.5), 1500.0))


def draw_policies(path: Path) -> None:
    runs = [
        PolicyRun(name, 400, latencies(scale), 106, 114) for name, scale in (("fixed", 20), ("deadline", 2))
    ]
    plots.policies(path, [*runs, PolicyRun("aimd", 400, [], 106, 114)], 100.0)


def draw_soak(path: Path) -> None:
    windows = [SoakWindow(10.0 * n, 8, 12, 15 + n, 30, 50, 120 + n, n % 3) for n in range(20)]
    plots.soak(path, soak_report(200, 50, SoakRun([0.01], windows, Counter(insert=9)), 0), 100.0)


def draw_lag(path: Path) -> None:
    samples = [LagSample(float(n), 110.0 + n, 100 * n) for n in range(30)]
    plots.lag(path, lag_report(1_000_000, 14, 540, 9, samples))


def draw_mixed(path: Path) -> None:
    alone, during = percentiles_ms([0.008, 0.009, 0.015]), percentiles_ms([0.02, 0.03, 0.08])
    plots.mixed(path, alone, during, 700.0, 420.0)


@pytest.mark.parametrize(
    ("draw", "texts"),
    [
        (draw_latency, [*STAGES, "barest loop p99", "rows/s"]),
        (draw_one_latency, [*STAGES, "whole"]),
        (draw_throughput, ["livevec", "barest loop", "embedder alone", "1,250"]),
        (draw_policies, ["fixed: commit to searchable", "deadline: commit to searchable", "batch size"]),
        (draw_soak, ["p99", "target", "RSS of the daemon, MB", "0 lost"]),
        (draw_lag, ["1,000,000 changes waited at the start"]),
        (draw_mixed, ["during a backfill", "beside live changes", "420"]),
    ],
)
def test_a_figure_says_what_it_shows(draw: Callable[[Path], None], texts: list[str], tmp_path: Path) -> None:
    drawn = tmp_path / "figure.svg"
    draw(drawn)
    content = drawn.read_text("utf-8")
    assert [text for text in texts if text not in content] == []
    assert "fill: #ffffff" not in content, "the page shows through, be it light or dark"


def test_a_name_that_ends_in_png_gives_a_png(tmp_path: Path) -> None:
    plots.check(tmp_path / "figure.PNG")
    draw_throughput(tmp_path / "figure.PNG")
    assert (tmp_path / "figure.PNG").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plots.check(None)
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        plots.check(tmp_path / "figure.pdf")
    with pytest.raises(ConfigError, match="no folder"):
        plots.check(tmp_path / "absent" / "figure.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        plots.check(tmp_path / "figure.svg")

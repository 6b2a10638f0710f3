"""Plots: every result is drawn, from its JSON, in both formats; what cannot be drawn is said before the measurement."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from daemon.bench.latency import Latency
from daemon.bench.percentiles import STAGES, percentiles_ms
from daemon.bench.report import LatencyReports, latency_report, throughput_report
from daemon.bench.throughput import Bulk
from daemon.errors import ConfigError
from tests.bench import plots
from tests.bench.lag import LagSample, lag_report
from tests.bench.mixed import mixed_report
from tests.bench.policies import PoliciesReport, PolicyReport, PolicyRun, policy_report
from tests.bench.skip import skip_report
from tests.bench.soak import SoakRun, SoakWindow, soak_report

STAGES_S = {"capture": 0.003, "transit": 0.001, "queue": 0.001, "embed": 0.004, "upsert": 0.001}


def latencies(scale: float) -> list[Latency]:
    return [
        Latency(str(n), scale * (0.008 + n * 1e-5), {s: scale * STAGES_S[s] for s in STAGES}, 100 + n / 20)
        for n in range(400)
    ]


def policy(samples: list[Latency]) -> PolicyReport:
    return policy_report(PolicyRun("", 400, samples, 106, 114), 0.1, lost=0)


LATENCIES = LatencyReports(
    [latency_report(rate, 400, latencies(rate / 100), latencies(rate / 120)) for rate in (100, 300)]
)
LATENCY = latency_report(100, 400, latencies(1), None)
THROUGHPUT = throughput_report(14, Bulk(1000, 0.8, 0.1), Bulk(1000, 1.2, 0.5), 1500.0)
POLICIES = PoliciesReport(
    20, 20, 10, 8, 100, 14, policy(latencies(20)), aimd=policy([]), deadline=policy(latencies(2))
)
SOAK = soak_report(
    200,
    50,
    100,
    SoakRun(
        [0.01],
        [SoakWindow(10.0 * n, 8, 12, 15 + n, 30, 50, 120 + n, n % 3) for n in range(20)],
        Counter(insert=9),
    ),
    lost=0,
)
LAG = lag_report(1_000_000, 14, 540, 9, [LagSample(float(n), 110.0 + n, 100 * n) for n in range(30)])
MIXED = mixed_report(
    4000,
    14,
    50,
    percentiles_ms([0.02, 0.03, 0.08]),
    percentiles_ms([0.008, 0.009, 0.015]),
    (690, 710),
    420,
    1300,
)
SKIP = skip_report(Bulk(1000, 0.5, 0.1), 12.345)
RESULTS: list[plots.Result] = [LATENCIES, LATENCY, THROUGHPUT, POLICIES, SOAK, LAG, MIXED, SKIP]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_result_survives_the_way_through_its_json(result: plots.Result, tmp_path: Path) -> None:
    written = tmp_path / "result.json"
    written.write_text(json.dumps(asdict(result)))
    assert plots.read(written) == result


@pytest.mark.parametrize(
    ("result", "texts"),
    [
        (LATENCIES, [*STAGES, "barest loop p99", "rows/s"]),
        (LATENCY, [*STAGES, "whole"]),
        (THROUGHPUT, ["livevec", "barest loop", "embedder alone", "1,250"]),
        (POLICIES, ["fixed: commit to searchable", "deadline: commit to searchable", "batch size"]),
        (SOAK, ["p99", "target", "RSS of the daemon, MB", "0 lost"]),
        (LAG, ["1,000,000 changes waited at the start"]),
        (MIXED, ["during a backfill", "beside live changes", "420"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_figure_says_what_it_shows(result: plots.Result, texts: list[str], tmp_path: Path) -> None:
    drawn = tmp_path / "figure.svg"
    plots.draw(drawn, result)
    content = drawn.read_text("utf-8")
    assert [text for text in texts if text not in content] == []
    assert "fill: #ffffff" not in content, "the page shows through, be it light or dark"


def test_a_name_that_ends_in_png_gives_a_png(tmp_path: Path) -> None:
    plots.check(tmp_path / "figure.PNG")
    plots.draw(tmp_path / "figure.PNG", THROUGHPUT)
    assert (tmp_path / "figure.PNG").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_result_or_has_no_plot_is_refused(tmp_path: Path) -> None:
    written = tmp_path / "result.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        plots.read(written)
    for content in ("", "{}", '{"rows": 3}'):
        written.write_text(content)
        with pytest.raises(ConfigError, match="--json"):
            plots.read(written)
    with pytest.raises(ConfigError, match="no plot"):
        plots.draw(tmp_path / "figure.svg", SKIP)


def test_what_cannot_be_drawn_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plots.check(None)
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        plots.check(tmp_path / "figure.pdf")
    with pytest.raises(ConfigError, match="no folder"):
        plots.check(tmp_path / "absent" / "figure.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        plots.check(tmp_path / "figure.svg")

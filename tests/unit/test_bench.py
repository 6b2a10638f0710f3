"""The arithmetic of measurements, and the order in which systems take turns."""

import tomllib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.bench.latency import Latency, blocks, measure, warm_up_rows
from daemon.bench.load import LoadRow, LoadTable, rows_of
from daemon.bench.percentiles import STAGES, percentiles_ms
from daemon.bench.report import latency_report
from daemon.cli.bench.setting import Setting, to_toml
from daemon.config import parse
from daemon.errors import ConfigError
from daemon.settings import Config

SENTENCES = ["a small domesticated feline that purrs", "turns light into energy", "played with a bow"]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300))
def test_a_percentile_is_a_measured_value_that_so_many_do_not_exceed(values: list[float]) -> None:
    found = percentiles_ms(values)
    ordered = sorted(values)
    for percent, value_ms in ((50, found.p50), (95, found.p95), (99, found.p99)):
        below = [one for one in ordered if round(1000 * one, 3) <= value_ms]
        assert len(below) >= percent / 100 * len(values)
        less = [one for one in ordered if round(1000 * one, 3) < value_ms]
        assert len(less) < percent / 100 * len(values)
    assert found.max == round(1000 * max(values), 3)
    assert found.count == len(values)


def test_nothing_measured_gives_zeros() -> None:
    assert percentiles_ms([]).count == percentiles_ms([]).p99 == 0


@pytest.mark.parametrize("tokens", [3, 14, 200])
def test_load_texts_have_about_the_tokens_asked_for_and_all_differ(tokens: int) -> None:
    rows = rows_of(SENTENCES, tokens, 500)
    assert [row.id for row in rows] == list(range(1, 501))
    assert len({row.text for row in rows}) == 500
    # 1.3 tokens a word, two special ones, and a number where a text came again.
    assert all(abs((len(row.text.split()) - 0.5) * 1.3 + 2 - tokens) <= 2 for row in rows)


@given(rows=st.integers(1, 3_000), rate=st.floats(0.5, 2_000))
def test_blocks_are_the_rows_in_order_and_warm_up_is_apart(rows: int, rate: float) -> None:
    load = [LoadRow(number, "") for number in range(1, rows + 1)]
    warm_up = warm_up_rows(rows)
    found = blocks(load, warm_up, rate)
    assert [row for block in found for row in block] == load
    assert all((block[0].id <= warm_up) == (block[-1].id <= warm_up) for block in found)


class InstantSystem:
    """Answers each row at once, with a latency of its own."""

    def __init__(self, name: str, latency_s: float, log: list[str]) -> None:
        self.name = name
        self.table = cast(LoadTable, self)
        self._latency_s = latency_s
        self._log = log
        self._arrived: list[Latency] = []

    def insert(self, rows: Sequence[LoadRow], rate: float, on_insert: Any) -> None:
        self._log.append(self.name)
        stages = dict.fromkeys(STAGES, self._latency_s / 5)
        self._arrived += [Latency(str(row.id), self._latency_s, stages) for row in rows]
        on_insert(len(rows))

    def arrived(self) -> Sequence[Latency]:
        found, self._arrived = self._arrived, []
        return found


def test_systems_take_turns_block_by_block_and_who_is_first_takes_turns_too() -> None:
    log: list[str] = []
    progress: list[int] = []
    systems = [InstantSystem("livevec", 0.015, log), InstantSystem("floor", 0.010, log)]
    rows = rows_of(SENTENCES, 14, 100)
    found = measure(systems, rows, 10.0, lambda what, done, total: progress.append(done))
    assert log == ["livevec", "floor", "floor", "livevec"] * 2 + ["livevec", "floor"]
    assert all(first < second for first, second in pairwise(progress))
    assert progress[-1] == 200
    report = latency_report(10.0, 100, found["livevec"], found["floor"])
    assert report.livevec_ms.count == 80, "the first fifth only warms up"
    assert report.ratio is not None
    assert (report.ratio.p50, report.ratio.p99) == (1.5, 1.5)
    assert report.stages_ms["embed"].p50 == 3.0


def test_without_a_floor_there_is_no_ratio() -> None:
    report = latency_report(10.0, 1, [Latency("1", 0.01, dict.fromkeys(STAGES, 0.0))], None)
    assert report.floor_ms is None
    assert report.ratio is None


def test_settings_survive_the_way_through_a_file() -> None:
    config = parse(
        {
            "shutdown_timeout_s": 3.5,
            "kafka": {"client": {"sasl.password": 'a"b\\c\u007f🔑\n', "enable.ssl": True}},
            "redis": {"url": "redis://u:p@h:1/0"},
            "local": {"ports": {"redis": 6379}},
            "sources": [{"name": "a", "kind": "postgres", "dsn": "postgresql://h/d"}],
            "pipelines": [
                {
                    "name": "p",
                    "source": "a",
                    "table": "s.t",
                    "text": "{x}",
                    "metadata": [{"column": "c", "type": "numeric"}],
                    "index": {"m": 8},
                }
            ],
        }
    )
    assert parse(tomllib.loads(to_toml(config))) == config
    assert parse(tomllib.loads(to_toml(Config()))) == Config()


def test_an_embedder_that_may_charge_is_not_measured() -> None:
    config = parse(
        {
            "embedding": {"provider": "openai", "url": "http://127.0.0.1:1/v1", "model": "m", "dimension": 8},
            "sources": [{"name": "a", "kind": "postgres", "dsn": "postgresql://h/d"}],
        }
    )
    with pytest.raises(ConfigError, match="charge"):
        Setting.of(config, ["p"])

"""The arithmetic of measurements of many changes at once, and how their end is waited for."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.bench.ceiling import TEXTS_PER_REQUEST, requests_of
from daemon.bench.latency import Latency
from daemon.bench.load import LoadRow, LoadTable
from daemon.bench.process import cpu_s
from daemon.bench.report import throughput_report
from daemon.bench.throughput import Bulk, measure_copy, pause_s, wait_for
from daemon.errors import LivevecError
from tests.bench.skip import measure_unchanged, skip_report

ROWS = [LoadRow(number, "") for number in range(1, 11)]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class InstantSystem:
    """Takes every row at once: row i after i seconds, by its own clock, and with a second of CPU."""

    name = "public.load"

    def __init__(self, updated: int = 0, handled: int = 0) -> None:
        self.table = cast(LoadTable, self)
        self._arrived = [Latency("of an earlier measurement", 99.0, {})]
        self._cpu_s = 7.0
        self._updated, self._handled = updated, handled
        self._unchanged = 5

    def copy(self, rows: Sequence[LoadRow]) -> None:
        self._arrived += [Latency(str(row.id), float(row.id), {}) for row in rows]
        self._cpu_s += 1.0

    def execute(self, statement: str) -> Any:
        """The UPDATE that changes nothing."""
        assert statement == "UPDATE public.load SET body = body"
        self._unchanged += self._handled
        self._cpu_s += 1.0
        return SimpleNamespace(rowcount=self._updated)

    def acknowledged(self) -> int:
        return len(self._arrived)

    def arrived(self) -> Sequence[Latency]:
        return self._arrived

    def unchanged(self) -> int:
        return self._unchanged

    def cpu_s(self) -> float:
        return self._cpu_s


def test_a_copy_lasts_until_its_own_last_row_and_costs_what_was_used_meanwhile() -> None:
    assert measure_copy(InstantSystem(), ROWS, silent) == Bulk(changes=10, seconds=10.0, cpu_s=1.0)


def test_unchanged_changes_count_from_before_the_update() -> None:
    found = measure_unchanged(InstantSystem(updated=10, handled=10), 10, silent)
    assert (found.changes, found.cpu_s) == (10, 1.0)


@pytest.mark.parametrize(("updated", "handled"), [(9, 9), (10, 11)])
def test_a_count_that_is_not_the_rows_is_refused(updated: int, handled: int) -> None:
    with pytest.raises(LivevecError, match=r"nothing else|another measurement"):
        measure_unchanged(InstantSystem(updated, handled), 10, silent)


def test_what_does_not_move_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.bench.throughput._STALLED_AFTER_S", 0.0)
    with pytest.raises(LivevecError, match="3 of 10 changes"):
        wait_for(lambda: 7, 10, "x", silent)


@example(done=9, total=10, elapsed_s=0.9)
@given(done=st.integers(0, 1_000), total=st.integers(1, 1_000), elapsed_s=st.floats(0, 1e4))
def test_the_pause_never_reaches_past_the_expected_end_by_more_than_its_least(
    done: int, total: int, elapsed_s: float
) -> None:
    pause = pause_s(done, total, elapsed_s)
    assert 0.01 <= pause <= 0.25
    if done:
        assert pause <= max(0.01, (total - done) * elapsed_s / done)


@given(st.lists(st.text(), max_size=300))
def test_requests_hold_all_texts_in_order(texts: list[str]) -> None:
    requests = list(requests_of(texts))
    assert [text for request in requests for text in request] == texts
    assert all(len(request) == TEXTS_PER_REQUEST for request in requests[:-1])


def test_ratios_are_livevec_over_the_other_and_cpu_is_per_change() -> None:
    report: Any = throughput_report(14, Bulk(1000, 2.0, 0.4), Bulk(1000, 4.0, 0.9), 800.0)
    assert (report.texts_per_s, report.floor_texts_per_s, report.ceiling_texts_per_s) == (500, 250, 800)
    assert (report.ratio, report.floor_ratio) == (0.625, 2.0)
    assert report.daemon_cpu_ms_per_change == 0.4


def test_speed_on_one_core_is_what_the_cpu_time_allows() -> None:
    report = skip_report(Bulk(1000, 0.5, 0.1), 12.345)
    assert (report.changes_per_s, report.changes_per_s_per_core) == (2000, 10_000)
    assert (report.daemon_cpu_ms_per_change, report.guard_us_per_write) == (0.1, 12.35)
    assert skip_report(Bulk(10, 0.5, 0.0), 1.0).changes_per_s_per_core == 0


def test_cpu_time_of_a_process_whose_name_has_spaces_and_brackets(tmp_path: Path) -> None:
    command = tmp_path / "a) b"
    command.symlink_to(sys.executable)
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); time.sleep(60)"
    with subprocess.Popen([command, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "(a) b)" in Path(f"/proc/{process.pid}/stat").read_text()
        assert cpu_s(process.pid) >= 0.25
        process.kill()


def test_cpu_time_is_that_of_the_process() -> None:
    before_s, process_before_s = cpu_s(os.getpid()), time.process_time()
    while time.process_time() - process_before_s < 0.2:
        pass
    assert cpu_s(os.getpid()) - before_s == pytest.approx(0.2, abs=0.06)
    with pytest.raises(LivevecError, match="has ended"):
        cpu_s(2**22 + 1)

"""The load and the arithmetic of soak and lag."""

import os
from collections import Counter
from itertools import islice

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import LivevecError
from tests.bench.lag import LagSample, RecordedChange, changes, lag_report
from tests.bench.running import rss_mb
from tests.bench.soak import WINDOWS_MAX, SoakRun, SoakWindow, random_statements, soak_report, window_s


@given(st.integers(0, 1000))
def test_statements_touch_only_rows_that_are_there_and_every_text_is_new(seed: int) -> None:
    statements = list(islice(random_statements(["a", "b"], seed), 300))
    alive: set[int] = set()
    for one in statements:
        if one.kind == "insert":
            assert one.id not in alive
            alive.add(one.id)
        else:
            assert one.id in alive
            if one.kind == "delete":
                alive.discard(one.id)
    texts = [one.text for one in statements if one.text]
    assert len(set(texts)) == len(texts)
    assert statements == list(islice(random_statements(["a", "b"], seed), 300))


@given(st.floats(3, 1e6))
def test_windows_are_few_enough_to_read(seconds: float) -> None:
    assert seconds / window_s(seconds) <= WINDOWS_MAX + 1e-9


def test_a_soak_is_summed_up_over_its_windows() -> None:
    windows = [
        SoakWindow(10.0 * n, 1, 2, 3, 4, 5, rss, queue)
        for n, (rss, queue) in enumerate([(9, 1), (12, 7), (10, 0)])
    ]
    run = SoakRun([0.010, 0.020, 0.030], windows, Counter(insert=4, delete=1))
    report = soak_report(30.0, 0.2, 100.0, run, lost=0)
    assert (report.rss_mb_first, report.rss_mb_max, report.rss_mb_last) == (9, 12, 10)
    assert (report.queue_changes_max, report.inserts, report.updates, report.deletes) == (7, 4, 0, 1)
    assert (report.live_ms.p50, report.live_ms.count) == (20.0, 3)


def test_lag_is_made_of_copies_with_ids_and_texts_of_their_own() -> None:
    envelope = {"op": "c", "after": {"id": 2, "body": "x"}, "source": {"lsn": 70, "sequence": '["60","64"]'}}
    template = RecordedChange(orjson.dumps({"id": 2}), orjson.dumps(envelope))
    made = list(changes(template, ["a", "b"], 5))
    values = [orjson.loads(one.value) for one in made]
    assert [orjson.loads(one.key)["id"] for one in made] == [value["after"]["id"] for value in values]
    assert [value["after"]["id"] for value in values] == [3, 4, 5, 6, 7]
    assert len({value["after"]["body"] for value in values}) == 5
    assert [value["source"]["lsn"] for value in values] == [71, 72, 73, 74, 75]
    assert {value["source"]["sequence"] for value in values} == {'["60","64"]'}


def test_lag_reports_the_most_memory_that_was_seen() -> None:
    samples = [LagSample(0.0, 100.0, 0), LagSample(0.5, 160.0, 20_100), LagSample(1.0, 150.0, 19_000)]
    report = lag_report(1000, 14, 540, 700, samples)
    assert (report.rss_mb_first, report.rss_mb_max, report.queue_changes_max) == (100.0, 160.0, 20_100)
    assert (report.seconds, report.done) == (1.0, 700)


def test_resident_memory_is_that_of_the_process() -> None:
    before_mb = rss_mb(os.getpid())
    held = bytearray(b"x") * 100_000_000
    assert 90 < rss_mb(os.getpid()) - before_mb < 110
    assert len(held) == 100_000_000
    with pytest.raises(LivevecError, match="has ended"):
        rss_mb(2**22 + 1)

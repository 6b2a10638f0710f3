"""The arithmetic of comparing policies, and the embedder that can be slow."""

import asyncio
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from daemon.bench.latency import Latency
from daemon.bench.load import LoadRow
from tests.bench.policies import Batch, Moment, PolicyRun, batches, policy_report, random_arrivals, recovery_s
from tests.bench.slow_embedder import SlowDown, SlowedInference, read_slow_down, write_slow_down
from tests.bench.stored import differences


def sample(committed_at_s: float, total_s: float, upsert_s: float = 0.001) -> Latency:
    return Latency("1", total_s, {"upsert": upsert_s}, committed_at_s)


def test_violations_are_counted_and_measured_beyond_the_target() -> None:
    samples = [sample(1.0, 0.05), sample(2.0, 0.25), sample(2.5, 0.15), sample(4.0, 0.05), sample(5.5, 0.02)]
    report = policy_report(PolicyRun("deadline", 6, samples, 1.5, 3.0), 0.1, lost=1)
    assert (report.over_target, report.over_target_ms_sum) == (2, 200.0)
    assert (report.rows, report.searchable, report.lost) == (6, 5, 1)
    assert (report.slow_ms.count, report.slow_ms.max) == (2, 250.0)
    assert report.p99_ms == 250.0
    assert report.recovery_s == 1.0
    assert (report.slow_began_s, report.slow_ended_s) == (0.5, 2.0)
    # Committed 0, 1, 1.5, 3 and 4.5 s after the first; each was embedded a millisecond before it was searchable.
    latencies = [(moment.at_s, moment.latency_ms_max) for moment in report.moments if moment.latency_ms_max]
    assert latencies == [(0.25, 50), (1.25, 250), (1.75, 150), (3.25, 50), (4.75, 20)]
    assert report.moments[0] == Moment(0.25, 50, 1, 50)


def test_recovered_is_the_first_row_after_which_a_whole_second_met_the_target() -> None:
    late, good = 0.2, 0.05
    history = [
        (9.0, late),
        (10.1, late),
        (10.5, good),
        (11.0, late),
        (11.2, good),
        (12.3, good),
        (13.0, late),
    ]
    assert recovery_s([sample(*one) for one in history], 10.0, 0.1) == 1.2
    assert recovery_s([sample(10.0 + n / 10, late) for n in range(50)], 10.0, 0.1) is None
    assert recovery_s([sample(10.0 + n / 10, good) for n in range(50)], 10.0, 0.1) == 0.0


def test_rows_that_were_embedded_at_one_moment_were_one_batch() -> None:
    first = [sample(100.0, 0.020, 0.005), sample(100.004, 0.017, 0.006)]
    second = [sample(100.010, 0.030, 0.001)]
    found = batches([*second, *first])
    assert [(batch.size, batch.latency_s) for batch in found] == [(2, 0.020), (1, 0.030)]
    assert isinstance(found[0], Batch)


@given(st.integers(2, 300), st.floats(1, 1000), st.integers(0, 99))
def test_arrivals_are_the_same_for_a_seed_and_as_many_a_second_as_asked_for(
    count: int, rate: float, seed: int
) -> None:
    rows = [LoadRow(number, "") for number in range(count)]
    arrivals = random_arrivals(rows, rate, seed)
    assert arrivals == random_arrivals(rows, rate, seed)
    assert [one.row for one in arrivals] == rows
    assert arrivals[0].at_s == 0
    assert all(first.at_s <= second.at_s for first, second in pairwise(arrivals))
    assert arrivals[-1].at_s <= 5 * count / rate + 10 / rate


def test_what_the_index_does_not_know_is_missing_stale_or_orphaned() -> None:
    found = differences({"1": "a", "2": "b", "3": "c"}, {"2": "b", "3": "old", "4": "d"})
    assert (found.missing, found.stale, found.orphaned, found.lost) == (1, 1, 1, 3)


def test_a_slow_down_is_told_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "slow_down.json"
    assert read_slow_down(path) is None
    write_slow_down(path, SlowDown(10.0, 5.0, 8.0))
    found = read_slow_down(path)
    assert found is not None
    assert [found.factor_at(now_s) for now_s in (4.9, 5.0, 7.9, 8.0)] == [1.0, 10.0, 10.0, 1.0]
    write_slow_down(path, None)
    assert read_slow_down(path) is None


def test_a_slow_embedder_takes_one_request_after_another_and_a_fast_one_all_at_once() -> None:
    async def most_at_once(factor: float) -> int:
        inference = SlowedInference(lambda: factor)
        running, most = 0, 0
        together = asyncio.Event()

        async def call(request: bytes) -> bytes:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 3:
                together.set()
            if factor == 1.0:
                await together.wait()
            running -= 1
            return request

        replies = await asyncio.gather(*(inference.infer(call, b"%d" % number) for number in range(3)))
        assert replies == [b"0", b"1", b"2"]
        return most

    assert asyncio.run(most_at_once(10.0)) == 1
    assert asyncio.run(most_at_once(1.0)) == 3

"""Each part is killed under a steady random load and comes back; the index converges and the counts add up."""

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis.exceptions import RedisError

from deploy.local.stack import Stack
from tests.chaos.random_load import random_load
from tests.support.mirrored_table import DaemonProcess, MirroredTable, wait_until

SENTINEL = 1_000_000


@pytest.fixture
def partitioned(stack: Stack, tmp_path: Path) -> Iterator[MirroredTable]:
    """A mirrored table whose topic has three partitions: a TRUNCATE may be read before older inserts."""
    table = MirroredTable(stack, tmp_path, partitions=3)
    try:
        yield table
    finally:
        table.close()


def recovery_s(table: MirroredTable, first: int = SENTINEL, deadline_s: float = 90.0) -> float:
    """Seconds from now until a row that was committed after now is in the index.

    A row is committed every 50 ms, each with a number of its own from `first` on, a multiple of 100,000 that is new to
    the table: a TRUNCATE of the load takes those before it.
    """
    started_s = time.monotonic()
    numbers = itertools.count(first)
    document = f"lv:{table.name}:1:doc:{{{table.name}.*}}:{str(first)[:-5]}?????:0"

    def recovered() -> bool:
        try:
            table.execute("insert into $T values (%s, 'sentinel', 'row', 'x', 1)", next(numbers))
            return next(table.redis.scan_iter(match=document, count=10_000), None) is not None
        except psycopg.OperationalError:
            table.reconnect()
        except RedisError:
            pass
        return False

    wait_until(recovered, deadline_s, "a row committed after the kill is searchable")
    return time.monotonic() - started_s


def assert_right_at_rest(table: MirroredTable, killed: str = "") -> None:
    """By the tests' own comparison, then by the checker that users have."""
    table.wait_equal(120)
    verify = table.command("verify", "--json")
    assert verify.returncode == 0, f"{killed}: {verify.stdout}{verify.stderr}"


def assert_counts_add_up(table: MirroredTable, daemon: DaemonProcess) -> None:
    read_name = f'livevec_changes_read_total{{pipeline="{table.name}"}}'
    wait_until(
        lambda: daemon.metrics()[read_name] == sum(daemon.outcomes().values()),
        30,
        f"outcomes add up to what was read: {daemon.outcomes()}",
    )


def test_each_killed_part_comes_back_and_nothing_is_lost(partitioned: MirroredTable, stack: Stack) -> None:
    """One daemon outlives all six. After each kill the index is compared at rest: a later write could hide a loss."""
    table = partitioned
    table.connect()
    with table.daemon() as daemon:
        for seed, part in enumerate(("redis", "triton", "stub", "kafka", "connect", "postgres")):
            with random_load(table, seed) as load:
                wait_until(lambda load=load: load.statements > 150)  # type: ignore[misc]
                if part == "stub":
                    os.kill(stub_pid(stack), signal.SIGKILL)
                else:
                    stack.kill(part)
                seconds = recovery_s(table, SENTINEL + 100_000 * seed)
                print(json.dumps({"killed": part, "recovered_s": round(seconds, 2)}))
                before = load.statements
                wait_until(lambda load=load, before=before: load.statements > before + 150)  # type: ignore[misc]
            assert_right_at_rest(table, part)
            assert_counts_add_up(table, daemon)
            assert daemon.process.poll() is None, part


def stub_pid(stack: Stack) -> int:
    """The Python process of the model, a child of Triton's."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == stack.pid("triton") and b"triton_python_backend_stub" in command:
                return int(entry.name)
    raise AssertionError("Triton has no model process")


def test_the_daemon_killed_again_and_again_under_load_loses_nothing(partitioned: MirroredTable) -> None:
    partitioned.connect()
    with random_load(partitioned, seed=7) as load:
        for number in range(5):
            daemon = partitioned.start_daemon().wait_ready()
            before = load.statements
            wait_until(lambda before=before, number=number: load.statements > before + 20 * (number + 1))  # type: ignore[misc]
            daemon.kill()
        started_s = time.monotonic()
        partitioned.start_daemon().wait_ready()
        print(json.dumps({"killed": "daemon", "recovered_s": round(time.monotonic() - started_s, 2)}))
    assert_right_at_rest(partitioned)


def test_flushed_redis_is_noticed_marked_and_read_again(partitioned: MirroredTable) -> None:
    """No TRUNCATE here: what the log no longer tells is for a repair."""
    partitioned.connect()
    with partitioned.daemon() as daemon:
        with random_load(partitioned, truncates=False) as load:
            wait_until(lambda: load.statements > 150)
            partitioned.redis.flushall()
            before = load.statements
            wait_until(lambda: load.statements > before + 100)
        assert_right_at_rest(partitioned)
        assert daemon.metrics()["livevec_redis_went_back_total"] >= 1
        assert b"redis_went_back" in partitioned.redis.hgetall(f"lv:{partitioned.name}:reconcile")
        # The index itself is there again, and finds.
        info = partitioned.redis.execute_command("FT.INFO", partitioned.name)
        assert info is not None


def test_a_daemon_that_slept_past_its_session_neither_overwrites_nor_commits(
    partitioned: MirroredTable,
) -> None:
    partitioned.connect()
    sleeper = partitioned.start_daemon().wait_ready()
    with random_load(partitioned, seed=3) as load:
        wait_until(lambda: load.statements > 100)
        os.kill(sleeper.process.pid, signal.SIGSTOP)
        other = partitioned.start_daemon()
        # The group waits for the sleeper's session to end, then gives its partitions to the other.
        other.wait_ready()
        wait_until(lambda: other.outcomes().get("embedded", 0) > 50, 60)
        committed = partitioned.committed()
        os.kill(sleeper.process.pid, signal.SIGCONT)
        before = load.statements
        wait_until(lambda: load.statements > before + 200)
        after = partitioned.committed()
        assert all(after[number] >= offset for number, offset in committed.items())
    assert_right_at_rest(partitioned)
    assert sleeper.process.poll() is None
    # Both go on: the group shares the partitions, and another kill changes nothing.
    other.kill()
    with random_load(partitioned, seed=4) as load:
        wait_until(lambda: load.statements > 100)
    assert_right_at_rest(partitioned)

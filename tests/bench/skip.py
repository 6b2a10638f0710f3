"""What a change costs that changes nothing (one UPDATE of all rows to what they are), and the version rule's cost."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import redis

from daemon.bench.latency import OnProgress
from daemon.bench.load import LoadTable
from daemon.bench.throughput import Bulk, wait_for
from daemon.core.version import LogVersion
from daemon.errors import LivevecError
from daemon.index.connection import Command, translated
from daemon.index.layout import Layout
from daemon.index.writer import Put, Result

_NAME = "livevec_bench_guard"
_PIPELINE = 16
_PIPELINES_PER_BLOCK = 8
_WARM_UP_PAIRS = 2
_PAIRS = 40
_BLOCK = _PIPELINE * _PIPELINES_PER_BLOCK


class SkippingSystem(Protocol):
    """A system that counts the changes that changed nothing."""

    table: LoadTable

    def unchanged(self) -> int:
        """Return how many changes of that kind were handled since the system started."""
        ...

    def cpu_s(self) -> float: ...


@dataclass(frozen=True)
class SkipReport:
    """`changes_per_s_per_core`: if the daemon's CPU were the only limit; 0 where it took less than a clock tick."""

    rows: int
    changes_per_s: float
    daemon_cpu_ms_per_change: float
    changes_per_s_per_core: float
    guard_us_per_write: float


def measure_unchanged(system: SkippingSystem, rows: int, on_progress: OnProgress) -> Bulk:
    """Update all `rows` of the table in one transaction without changing a value.

    Raises:
        LivevecError: not all changes were found to change nothing.
    """
    before, cpu_before_s = system.unchanged(), system.cpu_s()
    updated = system.table.execute(f"UPDATE {system.table.name} SET body = body").rowcount
    began_s = time.monotonic()
    if updated != rows:
        raise LivevecError(
            f"the update changed {updated} rows instead of {rows}; does another measurement run on this database?"
        )
    wait_for(lambda: system.unchanged() - before, rows, "unchanged", on_progress)
    return Bulk(rows, time.monotonic() - began_s, system.cpu_s() - cpu_before_s)


def skip_report(skipped: Bulk, guard_us_per_write: float) -> SkipReport:
    """Return the speed and the CPU time of changes that changed nothing."""
    return SkipReport(
        rows=skipped.changes,
        changes_per_s=round(skipped.changes / skipped.seconds, 1),
        daemon_cpu_ms_per_change=skipped.cpu_ms_per_change,
        changes_per_s_per_core=round(skipped.changes / skipped.cpu_s, 1) if skipped.cpu_s else 0.0,
        guard_us_per_write=round(guard_us_per_write, 2),
    )


def guard_us_per_write(redis_url: str, dimension: int, text: str) -> float:
    """Return what the version rule costs: livevec_put of a document, against a plain HSET of the same hash.

    It is the median over pairs of blocks, one of each kind, of the difference per write, in microseconds. Every write
    makes a new document; no index covers the keys. Commands are packed before the clock starts, so that Redis is
    compared, not the client. The livevec functions must be loaded.

    Raises:
        LivevecError: Redis refused.
    """
    vector = np.random.default_rng(0).standard_normal(dimension, np.float32).tobytes()
    differences_s: list[float] = []
    with translated(), redis.Redis.from_url(redis_url) as client:
        _remove_keys(client)
        connection = client.connection_pool.get_connection()
        try:
            for number in range(_WARM_UP_PAIRS + _PAIRS):
                ids = [str(number * _BLOCK + at) for at in range(_BLOCK)]
                blocks = {
                    "guarded": [_guarded(identifier, text, vector) for identifier in ids],
                    "plain": [_plain(identifier, text, vector) for identifier in ids],
                }
                # The kind that goes first alternates.
                order = ("guarded", "plain") if number % 2 == 0 else ("plain", "guarded")
                taken_s = {kind: _send(connection, blocks[kind], kind) for kind in order}
                if number >= _WARM_UP_PAIRS:
                    differences_s.append((taken_s["guarded"] - taken_s["plain"]) / _BLOCK)
        finally:
            client.connection_pool.release(connection)
            _remove_keys(client)
    return 1e6 * statistics.median(differences_s)


def _remove_keys(client: "redis.Redis") -> None:
    """Remove what a measurement left behind, also one that was killed."""
    for key in client.scan_iter(match=f"lv:{_NAME}:*", count=1000):
        client.unlink(key)


def _guarded(identifier: str, text: str, vector: bytes) -> Command:
    version = LogVersion(0, 1 << 32, 1 << 32, 1 << 20)
    return Put(identifier, version, "0" * 32, "0" * 16, (), ((text, vector),)).command(Layout(_NAME, 1))


def _plain(identifier: str, text: str, vector: bytes) -> Command:
    key = f"{Layout(_NAME, 2).keys(identifier)[2]}:0"
    return ["HSET", key, "chunk", "0", "text", text, "embedding", vector, "id", identifier]


def _send(connection: Any, commands: Sequence[Command], kind: str) -> float:
    """Return the seconds that Redis took for all, pipeline by pipeline."""
    packed = [
        connection.pack_commands(commands[start : start + _PIPELINE])
        for start in range(0, len(commands), _PIPELINE)
    ]
    replies: list[int] = []
    began_s = time.perf_counter()
    for pipeline in packed:
        connection.send_packed_command(pipeline)
        replies += [connection.read_response() for _ in range(_PIPELINE)]
    taken_s = time.perf_counter() - began_s
    expected = Result.APPLIED if kind == "guarded" else 4
    if any(reply != expected for reply in replies):
        raise LivevecError(
            f"documents of the measurement existed already; remove the keys lv:{_NAME}:* from Redis, and let nothing "
            "else measure there"
        )
    return taken_s

"""What the version rule costs: livevec_put of a document, against a plain HSET of the same hash.

Commands are packed before the clock starts: what is compared is Redis, not the client. No index covers the keys.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import redis

from daemon.core.version import LogVersion
from daemon.errors import LivevecError
from daemon.index.connection import translated
from daemon.index.layout import Layout
from daemon.index.writer import Command, Put, Result

NAME = "livevec_bench_guard"
_PIPELINE = 16
_PIPELINES_PER_BLOCK = 8
_WARM_UP_PAIRS = 2
_PAIRS = 40
_BLOCK = _PIPELINE * _PIPELINES_PER_BLOCK


def guard_us_per_write(redis_url: str, dimension: int, text: str) -> float:
    """Median over pairs of blocks, one of each kind, of the difference per write, in microseconds.

    Every write makes a new document. The livevec functions must be loaded.

    Raises:
        LivevecError: Redis refused.
    """
    vector = np.random.default_rng(0).standard_normal(dimension, np.float32).tobytes()
    differences_s: list[float] = []
    with translated(), redis.Redis.from_url(redis_url) as client:
        remove_keys(client)
        connection = client.connection_pool.get_connection()
        try:
            for number in range(_WARM_UP_PAIRS + _PAIRS):
                ids = [str(number * _BLOCK + at) for at in range(_BLOCK)]
                blocks = {
                    "guarded": [_guarded(identifier, text, vector) for identifier in ids],
                    "plain": [_plain(identifier, text, vector) for identifier in ids],
                }
                # Who goes first takes turns.
                order = ("guarded", "plain") if number % 2 == 0 else ("plain", "guarded")
                taken_s = {kind: _send(connection, blocks[kind], kind) for kind in order}
                if number >= _WARM_UP_PAIRS:
                    differences_s.append((taken_s["guarded"] - taken_s["plain"]) / _BLOCK)
        finally:
            client.connection_pool.release(connection)
            remove_keys(client)
    return 1e6 * statistics.median(differences_s)


def remove_keys(client: "redis.Redis") -> None:
    """Whatever a measurement left, also one that was killed."""
    for key in client.scan_iter(match=f"lv:{NAME}:*", count=1000):
        client.unlink(key)


def _guarded(identifier: str, text: str, vector: bytes) -> Command:
    version = LogVersion(0, 1 << 32, 1 << 32, 1 << 20)
    return Put(identifier, version, "0" * 32, "0" * 16, (), ((text, vector),)).command(Layout(NAME, 1))


def _plain(identifier: str, text: str, vector: bytes) -> Command:
    key = Layout(NAME, 2).chunk_key(identifier, 0)
    return ["HSET", key, "chunk", "0", "text", text, "embedding", vector, "id", identifier]


def _send(connection: Any, commands: Sequence[Command], kind: str) -> float:
    """Seconds that Redis took for all, pipeline by pipeline."""
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
            f"the keys of the guard's measurement were not new; remove the keys lv:{NAME}:* from Redis, and let "
            "nothing else measure there"
        )
    return taken_s

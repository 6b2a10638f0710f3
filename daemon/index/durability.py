"""Whether what was written is on disk: before a position is recorded elsewhere that will not be read again.

`WAITAOF 1 0` waits until the writes of its own connection are in the append-only file. The file is one sequence, so
a small write on that connection, made after all others were answered, covers them on whichever connection they went.
A Redis that was started anew in between has lost its tail and would answer all the same: its run id tells.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import redis.exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from daemon.errors import RetryLater
from daemon.index.connection import Client, failure, key_of_each_primary, translated
from daemon.settings import RedisSettings

_KEY = "lv:durable:{{{}}}"
_WAIT_MS_MAX = 2_000
_KEPT_OPTIONS = ("username", "password", "socket_timeout", "protocol", "ssl", "ssl_ca_certs", "client_name")


class Durability:
    """Waits for the disk of every primary. Made before the writes that it is to vouch for.

    Attributes:
        unprovable: why this Redis cannot tell (no append-only file, or older than 7.2); empty: it can.
    """

    def __init__(self, client: Client, run_ids: Mapping[str, str], wait_s_max: float) -> None:
        self.unprovable = ""
        self._client = client
        self._run_ids = run_ids
        self._wait_s_max = wait_s_max
        self._silent: set[str] = set()
        self._asked = self._done = 0
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def begin(cls, client: Client, settings: RedisSettings) -> "Durability":
        """Begin to watch: a Redis that is started anew after this is noticed.

        Raises:
            FailureClass: Redis is away.
        """
        run_ids: dict[str, str] = {}
        async for name, connection, _ in _primaries(client):
            run_ids[name] = await _run_id(connection)
        return cls(client, run_ids, settings.timeout_s * 6)

    async def reached(self) -> None:
        """Wait until every write that was answered before this call is on disk.

        Raises:
            RetryLater: Redis was started anew since `begin`, is away, or its disk is too slow: write again.
        """
        self._asked += 1
        mine = self._asked
        async with self._one_at_a_time:
            if self._done >= mine:
                return
            covered = self._asked
            async for name, connection, key in _primaries(self._client):
                if name not in self._silent:
                    await self._on_disk(name, connection, key)
            self._done = covered

    async def _on_disk(self, name: str, connection: Redis, key: str) -> None:
        ends_at = asyncio.get_running_loop().time() + self._wait_s_max
        while True:
            # One pipeline is one connection: the write goes before the wait.
            pipe = connection.pipeline(transaction=False)
            pipe.set(key, "1", ex=3600)
            pipe.execute_command("WAITAOF", 1, 0, _WAIT_MS_MAX)
            with translated():
                written, waited = await pipe.execute(raise_on_error=False)
                run_id = await _run_id(connection)
            if isinstance(written, Exception):
                raise failure(written)
            if run_id != self._run_ids.get(name):
                raise RetryLater(f"Redis at {name} was started anew, and may have lost its last second")
            if isinstance(waited, redis_errors.ResponseError):
                self.unprovable = f"Redis does not tell when a write is on disk ({waited})"
                self._silent.add(name)
                return
            if isinstance(waited, Exception):
                raise failure(waited)
            if int(waited[0]) >= 1:
                return
            if asyncio.get_running_loop().time() > ends_at:
                raise RetryLater(f"Redis at {name} does not bring its writes to disk; is the disk full?", 1.0)


async def _run_id(connection: Redis) -> str:
    with translated():
        information = await cast(Any, connection).info("server")
    return str(information["run_id"])


async def _primaries(client: Client) -> AsyncIterator[tuple[str, Redis, str]]:
    """Give each primary: its name, a client of it alone, and a key that it holds."""
    for name, key in (await key_of_each_primary(client, _KEY.format)).items():
        if not isinstance(client, RedisCluster):
            yield "its address", client, key
        elif (node := client.get_node(node_name=name)) is not None:
            # With the cluster client's user and settings.
            settings = node.connection_kwargs.items()
            options = {setting: value for setting, value in settings if setting in _KEPT_OPTIONS}
            async with Redis(host=node.host, port=int(node.port), **options) as connection:
                yield name, connection, key

"""Whether writes are on disk, told by real Redis servers: one with an append-only file, one without, one restarted."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from daemon.errors import RetryLater
from daemon.index.connection import connect
from daemon.index.durability import Durability
from daemon.settings import RedisSettings
from tests.support.redis_server import RedisServer, redis_cluster, redis_server


def settings(server: RedisServer, cluster: bool = False) -> RedisSettings:
    return RedisSettings(url=SecretStr(f"redis://127.0.0.1:{server.port}/0"), cluster=cluster)


async def test_it_waits_for_writes_of_other_connections(tmp_path: Path) -> None:
    with redis_server(tmp_path, search=False) as server:
        client = connect(settings(server))
        try:
            await client.config_set("appendonly", "yes")
            await client.config_set("appendfsync", "everysec")
            durability = await Durability.begin(client, settings(server))
            with server.client() as other:
                for number in range(100):
                    other.set(f"k{number}", "v")
            await durability.reached()
            assert durability.unprovable == ""
            files = list((tmp_path / "appendonlydir").glob("*.incr.aof"))
            assert b"k99" in b"".join(file.read_bytes() for file in files)
        finally:
            await client.aclose()


async def test_without_an_append_only_file_it_says_so_and_waits_for_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path, search=False) as server:
        client = connect(settings(server))
        try:
            durability = await Durability.begin(client, settings(server))
            await durability.reached()
            assert "appendonly" in durability.unprovable
        finally:
            await client.aclose()


async def test_a_redis_that_was_started_anew_has_lost_what_it_had_not_brought_to_disk(tmp_path: Path) -> None:
    with redis_server(tmp_path, search=False) as server:
        client = connect(settings(server))
        durability = await Durability.begin(client, settings(server))
        await client.aclose()
    with redis_server(tmp_path, search=False) as other:
        client = connect(settings(other))
        durability._client = client
        try:
            with pytest.raises(RetryLater, match="started anew"):
                await durability.reached()
        finally:
            await client.aclose()


async def test_every_primary_of_a_cluster_is_waited_for(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as servers:
        client = connect(settings(servers[0], cluster=True))
        try:
            for server in servers:
                with server.client() as node:
                    node.config_set("appendonly", "yes")
            durability = await Durability.begin(client, settings(servers[0], cluster=True))
            assert len(durability._run_ids) == 3
            await durability.reached()
            assert durability.unprovable == ""
            for server in servers:
                with server.client() as node:
                    assert len(node.keys("lv:durable:*")) == 1
        finally:
            await client.aclose()

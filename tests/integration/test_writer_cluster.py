"""The daemon's own client, writer and positions: on one Redis and on a cluster of three."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.core.plan import Stored
from daemon.core.version import LogVersion
from daemon.errors import RetryLater
from daemon.index.connection import Client, connect
from daemon.index.layout import Layout
from daemon.index.positions import Positions, Verdict
from daemon.index.writer import Delete, IndexWriter, Put, Result, Touch, load_functions
from daemon.settings import RedisSettings
from tests.support.redis_server import RedisServer, redis_cluster, redis_server

LAYOUT = Layout("books", 1)
IDS = [f"book {number}" for number in range(300)]


@pytest.fixture(scope="module", params=["alone", "cluster"])
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RedisServer]]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "cluster":
        with redis_cluster(folder, 3) as nodes:
            yield nodes
    else:
        with redis_server(folder, search=False) as server:
            yield [server]


@pytest.fixture
async def client(servers: list[RedisServer]) -> AsyncIterator[Client]:
    url = SecretStr(f"redis://127.0.0.1:{servers[0].port}/0")
    client = connect(RedisSettings(url=url, cluster=len(servers) > 1))
    await load_functions(client)
    yield client
    for server in servers:
        with server.client() as direct:
            direct.flushall()
            direct.function_flush()
    await client.aclose()


def put(identifier: str, position: int) -> Put:
    return Put(
        identifier, LogVersion(0, position, position, 7), "h", "m", (("a", "b"),), (("text", b"\0" * 8),)
    )


async def test_writes_and_look_ups_reach_every_shard(client: Client) -> None:
    writer = IndexWriter(client, LAYOUT, 16)
    assert await writer.write([put(one, 5) for one in IDS]) == [Result.APPLIED] * len(IDS)
    assert await writer.write([put(one, 4) for one in IDS]) == [Result.SUPERSEDED] * len(IDS)
    assert await writer.lookup([*IDS, "none"]) == [Stored(LogVersion(0, 5, 5, 7), "h", "m")] * len(IDS) + [
        None
    ]
    touched = Touch(IDS[0], LogVersion(0, 6, 6, 7), "h", "m2", (("a", "c"),), ())
    other = Touch(IDS[1], LogVersion(0, 6, 6, 7), "another", "m2", (), ())
    deleted = Delete(IDS[2], LogVersion(0, 6, 6, 7), 60_000)
    assert await writer.write([touched, other, deleted]) == [Result.APPLIED, Result.CONFLICT, Result.APPLIED]
    found = [one async for ids in writer.ids(100) for one in ids]
    assert sorted(found) == sorted(IDS)


async def test_a_floor_in_every_bucket_then_a_sweep_empties_every_shard(client: Client) -> None:
    writer = IndexWriter(client, LAYOUT, 16)
    await writer.write([put(one, 5) for one in IDS])
    await writer.write([put(IDS[0], 9)])
    floor = LogVersion(0, 8, 8, 8)
    await writer.raise_floors(floor)
    assert await writer.sweep(floor) == len(IDS) - 1
    assert await writer.write([put(one, 7) for one in IDS]) == [Result.SUPERSEDED] * len(IDS)
    assert [one async for ids in writer.ids(100) for one in ids] == [IDS[0]]


async def test_positions_advance_and_tell_a_redis_that_went_back_from_a_successor(
    client: Client, servers: list[RedisServer]
) -> None:
    partition = ("topic", 3)
    first, second = Positions(client, "group"), Positions(client, "group")
    assert await first.claim([partition]) == {partition: None}
    assert await first.advance({partition: 40}) is Verdict.ADVANCED
    assert await first.advance({partition: 30}) is Verdict.ADVANCED, "a position never goes back"
    assert await second.claim([partition]) == {partition: 40}
    assert await first.advance({partition: 50}) is Verdict.FENCED
    assert await second.advance({partition: 60}) is Verdict.ADVANCED
    before = [_hashes(server) for server in servers]
    assert sum(len(hashes) for hashes in before) == len(servers), "one for each shard"
    assert await second.advance({partition: 70}) is Verdict.ADVANCED
    # One shard alone goes back, as after a failover to a lagging replica.
    for key, fields in before[0].items():
        with servers[0].client() as direct:
            direct.hset(key, mapping=fields)
    assert await second.advance({partition: 80}) is Verdict.WENT_BACK
    assert await second.claim([partition]) == {partition: 60}
    assert await second.advance({partition: 81}) is Verdict.ADVANCED
    assert await second.claim([]) == {}


async def test_a_partition_released_while_redis_is_asked_is_no_surprise(client: Client) -> None:
    partition = ("topic", 4)
    first, second = Positions(client, "group"), Positions(client, "group")
    await first.claim([partition])
    advancing = asyncio.ensure_future(first.advance({partition: 10}))
    await asyncio.sleep(0)
    first.release([partition])
    assert await advancing is Verdict.ADVANCED
    await first.claim([partition])
    await second.claim([partition])
    fenced = asyncio.ensure_future(first.advance({partition: 20}))
    await asyncio.sleep(0)
    first.release([partition])
    assert await fenced is Verdict.FENCED


async def test_a_function_library_that_vanished_is_loaded_again(
    client: Client, servers: list[RedisServer]
) -> None:
    writer = IndexWriter(client, LAYOUT, 16)
    for server in servers:
        with server.client() as direct:
            direct.function_flush()
    with pytest.raises(RetryLater, match="function library"):
        await writer.write([put("x", 1)])
    assert await writer.write([put("x", 1)]) == [Result.APPLIED]


def _hashes(server: RedisServer) -> dict[bytes, Any]:
    with server.client() as direct:
        return {key: direct.hgetall(key) for key in direct.keys("lv:positions:*")}

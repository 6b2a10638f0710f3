"""Why a reconcile is due is forgotten only by the reconcile that dealt with it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from daemon.index.layout import Layout
from daemon.index.writer import IndexWriter, load_functions
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), search=False) as running:
        yield running


@pytest.fixture
async def writer(server: RedisServer) -> AsyncIterator[IndexWriter]:
    client = Redis(host="127.0.0.1", port=server.port)
    await client.flushall()
    await load_functions(client)
    yield IndexWriter(client, Layout("books", 1), 16)
    await client.aclose()


async def test_a_mark_is_cleared_by_the_reconcile_that_began_after_it(writer: IndexWriter) -> None:
    await writer.mark_for_reconcile("redis_went_back")
    await writer.mark_for_reconcile("table_rewritten")
    await writer.reconciled(await writer.reconcile_reasons())
    assert await writer.reconcile_reasons() == {}


async def test_a_mark_that_came_up_again_meanwhile_stays(writer: IndexWriter) -> None:
    await writer.mark_for_reconcile("redis_went_back")
    await writer.mark_for_reconcile("table_rewritten")
    begun = await writer.reconcile_reasons()
    await asyncio.sleep(0.002)
    await writer.mark_for_reconcile("redis_went_back")
    again = await writer.reconcile_reasons()
    await writer.reconciled(begun)
    assert await writer.reconcile_reasons() == {"redis_went_back": again["redis_went_back"]}

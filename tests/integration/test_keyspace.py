"""The walk through an index version's keys: on one Redis and on a cluster of three."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.core.version import LogVersion
from daemon.index.connection import Client, connect
from daemon.index.keyspace import Keyspace, WalkPosition
from daemon.index.layout import Layout
from daemon.index.writer import IndexWriter, Put, Result, load_functions
from daemon.settings import RedisSettings
from daemon.verify.stored import StoredDocuments
from tests.support.redis_server import RedisServer, redis_cluster, redis_server

LAYOUT = Layout("books", 1)
OTHERS = (Layout("books", 2), Layout("books-2", 1))
IDS = [f"book {{{number}}}:{number}*" for number in range(1500)]


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
    await client.aclose()


def put(identifier: str) -> Put:
    chunks = (("first", b"\0" * 8), ("second", b"\0" * 8))
    return Put(identifier, LogVersion(0, 5, 5, 7), "h", "m", (), chunks)


async def fill(client: Client) -> None:
    for layout in (LAYOUT, *OTHERS):
        writer = IndexWriter(client, layout, 500)
        assert set(await writer.write([put(one) for one in IDS])) == {Result.APPLIED}


async def test_a_walk_gives_every_key_of_its_version_and_none_of_another(client: Client) -> None:
    await fill(client)
    stored = StoredDocuments(client, IndexWriter(client, LAYOUT, 16))
    foreign = f"{LAYOUT.documents_prefix}by hand"
    await client.set(foreign, "1")
    documents, chunks, strange = set(), set(), set()
    position = await stored.keyspace.beginning()
    while not position.done:
        step = await stored.keyspace.step(position, 100)
        assert not step.restarted
        assert len(step.keys) < len(IDS)
        position = step.position
        found = stored.sorted_out(step.keys)
        documents.update(found.documents)
        chunks.update(found.chunks)
        strange.update(found.foreign)
    assert documents == set(IDS)
    assert chunks == {(one, number) for one in IDS for number in (0, 1)}
    assert strange == {foreign}


async def test_another_process_goes_on_from_a_position_and_misses_nothing_that_stays(client: Client) -> None:
    await fill(client)
    seen: set[str] = set()
    position = await Keyspace(client, LAYOUT).beginning()
    steps = 0
    while not position.done:
        written = WalkPosition(servers=position.servers, cursors=tuple(position.cursors))
        step = await Keyspace(client, LAYOUT).step(written, 100)
        seen.update(step.keys)
        position = step.position
        if steps < 20:
            # The hash table of Redis grows and shrinks under the walk.
            await _churn(client, steps)
        steps += 1
    assert {LAYOUT.bookkeeping(one) for one in IDS} <= seen


async def _churn(client: Any, number: int) -> None:
    keys = [f"other:{number}:{one}" for one in range(2000)]
    if number % 2:
        keys = [f"other:{number - 1}:{one}" for one in range(2000)]
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.execute_command(*(("DEL", key) if number % 2 else ("SET", key, "1")))
    await pipe.execute()


async def test_a_walk_begins_again_where_the_servers_are_not_those_of_its_position(client: Client) -> None:
    """A cursor of another process would leave keys out."""
    await fill(client)
    keyspace = Keyspace(client, LAYOUT)
    beginning = await keyspace.beginning()
    step = await keyspace.step(beginning, 100)
    elsewhere = replace(step.position, servers="others")
    again = await keyspace.step(elsewhere, 100)
    assert (again.restarted, again.keys, again.position) == (True, [], beginning)

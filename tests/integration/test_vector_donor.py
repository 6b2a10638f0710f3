"""Vectors of another index version: taken where they are the same, and nowhere else; on one Redis and on three."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import numpy as np
import pytest
from pydantic import SecretStr

from daemon.core.vectors import decode, encode
from daemon.core.version import LogVersion
from daemon.index.connection import Client, connect
from daemon.index.donor import VectorDonor, donor
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion, VersionTable
from daemon.index.writer import Delete, IndexWriter, Put, load_functions
from daemon.settings import RedisSettings
from tests.support.redis_server import RedisServer, redis_cluster, redis_server

ONE = IndexVersion(
    number=1,
    model="m",
    fingerprint="f",
    dimension=4,
    text="{a}",
    chunking=(0, 0),
    metadata=(),
    m=16,
    ef_construction=128,
    metric="cosine",
    type="FLOAT32",
)
TWO = replace(ONE, number=2, m=32)
IDS = [f"book {number}" for number in range(60)]
VECTORS = np.random.default_rng(3).normal(size=(2, 4)).astype(np.float32)


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
    """With a document of two chunks under each id."""
    url = SecretStr(f"redis://127.0.0.1:{servers[0].port}/0")
    made = connect(RedisSettings(url=url, cluster=len(servers) > 1))
    await load_functions(made)
    chunks = tuple(zip(("begin", "end"), encode(VECTORS, "FLOAT32"), strict=True))
    await IndexWriter(made, Layout("books", 1), 16).write(
        [Put(one, LogVersion(0, 1, 1, 1), f"hash of {one}", "", (), chunks) for one in IDS]
    )
    yield made
    for server in servers:
        with server.client() as direct:
            direct.flushall()
            direct.function_flush()
    await made.aclose()


def giving(client: Client, taker: IndexVersion, *givers: IndexVersion, active: int = 1) -> VectorDonor | None:
    versions = {one.number: one for one in (*givers, taker)}
    table = VersionTable(active=active, versions=versions, retired=frozenset(), failed={})
    return donor(client, "books", table, taker, 16)


async def test_all_vectors_of_a_text_are_given_in_order_and_none_of_another_text(client: Client) -> None:
    found = giving(client, TWO, ONE)
    assert found is not None
    wanted = [(one, f"hash of {one if number % 2 else 'another text'}") for number, one in enumerate(IDS)]
    given = await found.vectors([*wanted, ("nobody", "hash of nobody")])
    whole = tuple(encode(VECTORS, "FLOAT32"))
    assert given == [whole if number % 2 else () for number in range(len(IDS))] + [()]


async def test_of_a_document_that_is_gone_or_not_whole_nothing_is_given(client: Client) -> None:
    found = giving(client, TWO, ONE)
    assert found is not None
    await IndexWriter(client, Layout("books", 1), 16).write([Delete(IDS[0], LogVersion(0, 2, 2, 2), 60_000)])
    stems = [Layout("books", 1).keys(one)[2] for one in IDS]
    await client.delete(f"{stems[1]}:1")
    await client.hset(f"{stems[2]}:0", "embedding", b"short")
    given = await found.vectors([(one, f"hash of {one}") for one in IDS[:4]])
    assert [len(vectors) for vectors in given] == [0, 0, 0, 2]


async def test_the_functions_are_loaded_again_where_redis_lost_them(
    client: Client, servers: list[RedisServer]
) -> None:
    found = giving(client, TWO, ONE)
    assert found is not None
    for server in servers:
        with server.client() as direct:
            direct.function_flush()
    with pytest.raises(Exception, match="loading it"):
        await found.vectors([(IDS[0], f"hash of {IDS[0]}")])
    assert len((await found.vectors([(IDS[0], f"hash of {IDS[0]}")]))[0]) == 2


@pytest.mark.parametrize("shorter", ["FLOAT16", "BFLOAT16"])
async def test_a_vector_is_rounded_as_if_it_had_just_been_embedded(client: Client, shorter: str) -> None:
    found = giving(client, replace(TWO, type=shorter), ONE)
    assert found is not None
    (given,) = await found.vectors([(IDS[0], f"hash of {IDS[0]}")])
    assert given == tuple(encode(VECTORS, shorter))
    np.testing.assert_allclose(decode(given, shorter), VECTORS, rtol=0.01)


@pytest.mark.parametrize(
    ("giver", "taker"),
    [
        (replace(ONE, type="FLOAT16"), TWO),
        (replace(ONE, type="BFLOAT16"), replace(TWO, type="FLOAT16")),
        (ONE, replace(TWO, fingerprint="g")),
        (replace(ONE, fingerprint=""), replace(TWO, fingerprint="", model="n")),
        (ONE, replace(TWO, dimension=3)),
        (ONE, replace(TWO, chunking=(100, 10))),
    ],
)
async def test_another_model_other_chunks_and_lost_digits_give_nothing(
    client: Client, giver: IndexVersion, taker: IndexVersion
) -> None:
    assert giving(client, taker, giver) is None


async def test_what_readers_see_takes_from_nobody(client: Client) -> None:
    assert giving(client, TWO, ONE, active=2) is None
    assert giving(client, TWO, ONE) is not None

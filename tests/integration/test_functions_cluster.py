"""The functions on a Redis Cluster of three primaries."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from daemon.core.version import LogVersion
from daemon.index.layout import BUCKETS, Layout, bucket_of, positions_key
from daemon.index.writer import Delete, Put, Result, Touch
from tests.support.ordering.calls import Call, RaiseFloor, Sweep, advance, library_source
from tests.support.redis_server import redis_cluster

LAYOUT = Layout("books", 1)
DOCUMENTS = 2000
NODES = 3
HOUR_MS = 3_600_000
# With what a cluster's slot or a hash tag could stumble over.
IDS = [f"{number} {{{number}}}/'\n" for number in range(DOCUMENTS)]


def at(position: int) -> LogVersion:
    return LogVersion(0, position, position, position)


def document(identifier: str, position: int, chunks: int = 2) -> Put:
    texts = tuple((f"{identifier} {number}", b"\0\1") for number in range(chunks))
    return Put(identifier, at(position), f"hash of {chunks}", "m", (("color", "red"),), texts)


class Cluster:
    def __init__(self, client: Any) -> None:
        self.client = client

    def do(self, call: Call) -> Result:
        return Result(self.client.execute_command(*call.command(LAYOUT)))

    def chunk(self, identifier: str, number: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self.client.hgetall(LAYOUT.chunk_key(identifier, number))
        return found

    def keys_by_node(self) -> list[int]:
        nodes = self.client.get_primaries()
        return [self.client.dbsize(target_nodes=node) for node in nodes]


@pytest.fixture(scope="module")
def cluster_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with redis_cluster(tmp_path_factory.mktemp("cluster"), NODES) as servers:
        client: Any = RedisCluster(host="127.0.0.1", port=servers[0].port)
        client.function_load(library_source())
        yield client
        client.close()


@pytest.fixture
def cluster(cluster_client: Any) -> Cluster:
    cluster_client.flushall(target_nodes=RedisCluster.PRIMARIES)
    return Cluster(cluster_client)


def test_documents_of_all_buckets_are_written_touched_and_deleted(cluster: Cluster) -> None:
    assert {bucket_of(identifier) for identifier in IDS} == set(range(BUCKETS))
    results = Counter(cluster.do(document(identifier, 10, chunks=3)) for identifier in IDS)
    assert results == {Result.APPLIED: DOCUMENTS}
    keys = cluster.keys_by_node()
    assert sum(keys) == 4 * DOCUMENTS
    assert len(keys) == NODES
    assert min(keys) > DOCUMENTS

    for number, identifier in enumerate(IDS):
        assert cluster.do(document(identifier, 5)) is Result.SUPERSEDED
        match number % 3:
            case 0:
                assert cluster.do(document(identifier, 20, chunks=1)) is Result.APPLIED
            case 1:
                touch = Touch(identifier, at(20), "hash of 3", "m2", (("color", "blue"),), ())
                assert cluster.do(touch) is Result.APPLIED
            case 2:
                assert cluster.do(Delete(identifier, at(20), HOUR_MS)) is Result.APPLIED
    for number, identifier in enumerate(IDS):
        chunks = [cluster.chunk(identifier, chunk) for chunk in range(3)]
        colors = [chunk.get(b"color") for chunk in chunks]
        assert colors == [[b"red", None, None], [b"blue"] * 3, [None] * 3][number % 3]
        assert all(chunk[b"id"] == identifier.encode() for chunk in chunks if chunk)


def test_floors_of_all_buckets_hold_before_and_after_a_sweep(cluster: Cluster) -> None:
    newer = set(IDS[::10])
    for identifier in IDS:
        cluster.do(document(identifier, 30 if identifier in newer else 10))
    for floor in LAYOUT.floors():
        command = ("FCALL", "livevec_raise_floor", 1, floor, at(20).encode())
        assert cluster.client.execute_command(*command) == Result.APPLIED
    for identifier in IDS:
        late = document(identifier, 15)
        assert cluster.do(late) is Result.SUPERSEDED
        assert cluster.do(RaiseFloor(identifier, at(15))) is Result.SUPERSEDED
        swept = cluster.do(Sweep(identifier, at(20)))
        assert swept is (Result.SUPERSEDED if identifier in newer else Result.APPLIED)
        assert cluster.do(late) is Result.SUPERSEDED
    assert sum(cluster.keys_by_node()) == BUCKETS + 3 * len(newer)
    assert all(cluster.chunk(identifier, 1) for identifier in newer)


def test_positions_are_kept_on_every_shard(cluster: Cluster) -> None:
    keys = [positions_key("livevec", str(number)) for number in range(64)]
    for key in keys:
        assert cluster.client.execute_command(*advance(key, ("t:0", "", "5"))) == 1
        assert cluster.client.execute_command(*advance(key, ("t:0", "4", "6"))) == [b"t:0", b"5"]
    assert min(cluster.keys_by_node()) > 0


def test_chunks_of_another_slot_than_the_bookkeeping_are_refused(cluster: Cluster) -> None:
    """So the tests above would see a layout that puts a document's keys into several slots."""
    one, other = LAYOUT.keys("7"), LAYOUT.keys("8")
    command = document("7", 10).command(LAYOUT)
    node = cluster.client.get_node_from_key(one[0])
    for keys in ((one[0], one[1], other[2]), (one[0], other[1], one[2])):
        with pytest.raises(ResponseError, match="same slot"):
            cluster.client.execute_command(*command[:3], *keys, *command[6:], target_nodes=node)
    assert sum(cluster.keys_by_node()) == 0

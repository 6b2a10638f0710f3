"""livevec_advance: positions move by compare-and-set, all of them or none."""

from collections.abc import Iterator
from typing import Any

import pytest

from daemon.index.layout import positions_key
from tests.support.ordering.calls import advance, library_source
from tests.support.redis_server import redis_server

KEY = positions_key("livevec", "0")


@pytest.fixture(scope="module")
def server_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with redis_server(tmp_path_factory.mktemp("redis"), search=False) as server, server.client() as client:
        client.function_load(library_source())
        yield client


@pytest.fixture
def client(server_client: Any) -> Any:
    server_client.flushall()
    return server_client


def test_a_position_that_is_the_expected_one_moves(client: Any) -> None:
    assert client.execute_command(*advance(KEY, ("t:0", "", "5"))) == 1
    assert client.execute_command(*advance(KEY, ("t:0", "5", "9"), ("t:1", "", "2"))) == 1
    assert client.hgetall(KEY) == {b"t:0": b"9", b"t:1": b"2"}


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ([("t:0", "4", "9")], [b"t:0", b"5"]),
        ([("t:0", "", "9")], [b"t:0", b"5"]),
        ([("t:0", "05", "9")], [b"t:0", b"5"]),
        ([("t:2", "1", "9")], [b"t:2", b""]),
        ([("t:0", "5", "9"), ("t:1", "7", "9")], [b"t:1", b"6"]),
        ([("t:1", "7", "9"), ("t:0", "5", "9")], [b"t:1", b"6"]),
        ([("t:0", "4", "9"), ("t:1", "7", "9"), ("t:2", "", "9")], [b"t:0", b"5", b"t:1", b"6"]),
    ],
)
def test_one_that_is_not_holds_all_and_is_told(
    client: Any, changes: list[tuple[str, str, str]], differing: list[bytes]
) -> None:
    client.hset(KEY, mapping={"t:0": "5", "t:1": "6"})
    assert client.execute_command(*advance(KEY, *changes)) == differing
    assert client.hgetall(KEY) == {b"t:0": b"5", b"t:1": b"6"}


def test_after_the_data_is_lost_every_expected_position_differs(client: Any) -> None:
    client.execute_command(*advance(KEY, ("t:0", "", "5"), ("t:1", "", "6")))
    client.flushall()
    answer = client.execute_command(*advance(KEY, ("t:0", "5", "7"), ("t:1", "6", "8")))
    assert answer == [b"t:0", b"", b"t:1", b""]
    assert client.dbsize() == 0


def test_a_second_writer_that_expects_what_the_first_found_is_refused(client: Any) -> None:
    client.execute_command(*advance(KEY, ("t:0", "", "5")))
    first, second = advance(KEY, ("t:0", "5", "8")), advance(KEY, ("t:0", "5", "6"))
    assert client.execute_command(*first) == 1
    assert client.execute_command(*second) == [b"t:0", b"8"]
    assert client.hget(KEY, "t:0") == b"8"

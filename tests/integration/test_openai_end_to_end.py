"""A real daemon that embeds over HTTP: rows become searchable, and a provider that fails loses none of them."""

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest

from deploy.local.stack import Stack
from tests.support.mirrored_table import DaemonProcess, MirroredTable, wait_until
from tests.support.openai_server import MODEL, OpenAIServer, Reply, Request, error, openai_server, refusing

KEY = "sk-4f81e0aa9d"


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with openai_server(api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def table(
    stack: Stack, server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MirroredTable]:
    made = MirroredTable(stack, tmp_path_factory.mktemp("openai"))
    try:
        triton = f'url = "{made.addresses.triton_grpc}"'
        openai = f'provider = "openai"\nurl = "{server.url}"\nmodel = "{MODEL}"\napi_key = "{KEY}"'
        written = made.config_path.read_text()
        assert triton in written
        made.config_path.write_text(written.replace(triton, openai))
        made.connect()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def daemon(table: MirroredTable) -> Iterator[DaemonProcess]:
    with table.daemon() as running:
        yield running


@pytest.fixture(autouse=True)
def healthy(server: OpenAIServer) -> Iterator[None]:
    yield
    server.rule = lambda _: None


def _insert(table: MirroredTable, ids: range) -> None:
    table.execute(
        "insert into $T select i, 'title ' || i, 'body of ' || i, 'a', 1 from generate_series(%s::int, %s::int) i",
        ids.start,
        ids.stop - 1,
    )


def test_rows_are_searchable_with_the_vectors_of_the_server(
    table: MirroredTable, daemon: DaemonProcess, server: OpenAIServer
) -> None:
    _insert(table, range(1, 101))
    rows = table.wait_equal()
    vectors = table.vectors()
    for key, (text, *_) in rows.items():
        np.testing.assert_array_equal(vectors[key], server.vectors([text])[0])
    found = table.command("search", table.name, "title 42: body of 42", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["hits"][0]["id"] == "42"


def test_a_storm_of_refusals_and_failures_loses_nothing(
    table: MirroredTable, daemon: DaemonProcess, server: OpenAIServer
) -> None:
    chance = random.Random(7)
    storm = [
        error(429, "Rate limit reached", "rate_limit_exceeded", retry_after_ms="20"),
        error(503, "The engine is currently overloaded", retry_after="0"),
        error(500, "The server had an error"),
        Reply(502, b"<html>bad gateway</html>"),
    ]

    def rule(request: Request) -> Reply | None:
        return chance.choice(storm) if chance.random() < 0.6 else None

    server.rule = rule
    before = daemon.outcomes()
    for start in range(1_001, 1_401, 40):
        _insert(table, range(start, start + 40))
    table.execute("update $T set body = body || ', changed' where id between 1001 and 1200")
    table.execute("delete from $T where id between 1301 and 1400")
    table.wait_equal()
    assert daemon.outcomes().get("dead_lettered", 0) == before.get("dead_lettered", 0)
    log = daemon.log.read_text()
    assert "part_failing" in log
    assert KEY not in log
    assert "body of" not in log


def test_a_text_that_the_server_refuses_is_dead_lettered_alone(
    table: MirroredTable, daemon: DaemonProcess, server: OpenAIServer
) -> None:
    server.rule = refusing("poison", error(400, "This model's maximum context length is 8192 tokens"))
    before = daemon.outcomes().get("dead_lettered", 0)
    table.execute(
        "insert into $T select i, 'title', case i when 2025 then 'poison' else 'body ' || i end, 'a', 1 "
        "from generate_series(2001, 2050) i"
    )
    wait_until(lambda: {"2001", "2050"} <= table.indexed().keys(), what="its neighbours are searchable")
    wait_until(
        lambda: daemon.outcomes().get("dead_lettered", 0) == before + 1, what="the text is dead-lettered"
    )
    assert table.expected().keys() - table.indexed().keys() == {"2025"}
    (letter,) = [letter for letter in table.dead_letters() if letter["livevec.reason"] == "embedder_refused"]
    assert "poison" not in letter["livevec.message"]

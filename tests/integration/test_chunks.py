"""Long texts: cut by the model's tokenizer, searched as chunks or documents, surplus removed with the write."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, wait_until
from triton_models.build import packaged_weights

TOPICS = ["The cat sleeps on the warm window sill. ", "Interest rates were raised by the central bank. "]


@pytest.fixture
def chunked(stack: Stack, tmp_path: Path) -> Iterator[MirroredTable]:
    tokenizer = packaged_weights() / "tokenizer.json"
    chunking = f'chunking = {{ tokens_max = 64, tokens_overlap = 8, tokenizer = "{tokenizer}" }}'
    table = MirroredTable(stack, tmp_path, pipeline=chunking)
    try:
        yield table
    finally:
        table.close()


def chunks(table: MirroredTable, identifier: int) -> list[str]:
    keys = sorted(table.redis.scan_iter(match=f"lv:{table.name}:1:doc:*:{identifier}:*", count=1000))
    return [table.redis.hget(key, "text").decode() for key in keys]


def test_a_long_text_is_searched_by_its_parts_and_shrinks_without_a_rest(chunked: MirroredTable) -> None:
    table = chunked
    table.connect()
    with table.daemon():
        table.execute("insert into $T values (1, 'long', %s, 'c', 1)", TOPICS[0] * 20 + TOPICS[1] * 20)
        table.execute("insert into $T values (2, 'short', 'a note about nothing much', 'c', 1)")
        wait_until(lambda: len(chunks(table, 1)) >= 5)
        wait_until(lambda: len(chunks(table, 2)) == 1)
        assert all(text.rstrip().endswith(".") for text in chunks(table, 1)), "cut at ends of sentences"

        asked = ("search", table.name, "what did the central bank decide", "--json", "-k", "3")
        documents = json.loads(table.command(*asked).stdout)["hits"]
        assert [hit["id"] for hit in documents] == ["1", "2"]
        assert "Interest rates" in documents[0]["text"]
        parts = json.loads(table.command(*asked, "--chunks").stdout)["hits"]
        assert [hit["id"] for hit in parts] == ["1"] * 3
        assert len({hit["chunk"] for hit in parts}) == 3

        table.execute("update $T set body = 'short now' where id = 1")
        wait_until(lambda: chunks(table, 1) == ["long: short now"])
        table.execute("delete from $T where id = 1")
        wait_until(lambda: chunks(table, 1) == [])
        assert table.command("verify", "--json").returncode == 0

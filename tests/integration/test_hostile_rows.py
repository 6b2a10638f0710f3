"""Texts and keys that break naive code: nothing is lost, nothing collides, the hash tag holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.index.layout import Layout, document_id, document_key
from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable, wait_until

KEYS = [
    " ",
    "  leading and trailing  ",
    "a/b",
    "a%2Fb",
    "{}",
    "{x}",
    "}{",
    "a:0",
    "a:1",
    "a",
    "A",
    "'; drop table x; --",
    '"quoted"',
    "new\nline",
    "tab\t",
    "\\u0000",
    "\\x00",
    "*?[a-z]",
    "שלום",
    "👩‍👩‍👧‍👦",
    "é",
    "e\u0301",
    "k" * 1024,
    "k" * 1023 + "l",
]
TEXTS = [
    "",
    None,
    " ",
    "\n\t",
    "\\u0000 is no NUL",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 family",
    "a" * 1_000_000,
    "\u202e right to left override",
    "__debezium_unavailable_value",
    "\x01\x02 control",
    "{title} {} {{",
]


@pytest.fixture
def texts_by_name(stack: Stack, tmp_path: Path) -> Iterator[MirroredTable]:
    ddl = "id text primary key, title text, body text, category text, price numeric(10,2)"
    table = MirroredTable(stack, tmp_path, ddl, pipeline="text_bytes_max = 2000000")
    try:
        yield table
    finally:
        table.close()


def test_every_key_and_text_arrives_and_none_collides(texts_by_name: MirroredTable) -> None:
    table = texts_by_name
    table.connect()
    with table.daemon() as daemon:
        for number, key in enumerate(KEYS):
            table.execute("insert into $T values (%s, 'key', %s, %s, 1)", key, f"row {number}", key)
        for number, text in enumerate(TEXTS):
            table.execute("insert into $T values (%s, 'text', %s, 'x', 2)", f"text {number}", text)
        assert len(table.wait_equal()) == len(KEYS) + len(TEXTS)
        assert daemon.outcomes().get("dead_lettered", 0) == 0
        for key in KEYS:
            table.execute("update $T set body = 'changed' where id = %s", key)
        table.wait_equal()
        table.execute("delete from $T")
        assert table.wait_equal() == {}
        failures = f'livevec_hash_indexing_failures{{pipeline="{table.name}"}}'
        assert wait_until(lambda: failures in daemon.metrics())
        assert daemon.metrics()[failures] == 0


def test_a_row_whose_text_is_blank_is_known_but_not_searchable(stack: Stack, tmp_path: Path) -> None:
    table = MirroredTable(stack, tmp_path)
    try:
        table.config_path.write_text(
            table.config_path.read_text().replace("{title}: {body}", "{title}{body}")
        )
        table.connect()
        with table.daemon():
            table.execute("insert into $T values (1, '', null, 'x', 1), (2, 'now', 'text', 'x', 1)")
            wait_until(lambda: table.indexed().keys() == {"2"})
            assert table.redis.hget(Layout(table.name, 1).bookkeeping("1"), "n") == b"0"
            table.execute("update $T set body = '' , title = ' ' where id = 2")
            wait_until(lambda: table.indexed() == {})
            table.execute("update $T set body = 'again' where id = 1")
            wait_until(lambda: table.indexed().keys() == {"1"})
            assert table.command("verify", "--json").returncode == 0
    finally:
        table.close()


def test_composite_keys_are_ids_that_can_be_told_apart() -> None:
    pairs = [("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c"), ("", ""), ("/", ""), ("", "/"), ("%", "2F")]
    ids = [document_id(pair) for pair in pairs]
    assert len(set(ids)) == len(pairs)
    assert [document_key(identifier, 2) for identifier in ids] == pairs


def test_no_key_moves_a_document_out_of_its_bucket() -> None:
    layout = Layout("p", 1)
    for key in KEYS:
        tags = {name[name.index("{") + 1 : name.index("}")] for name in layout.keys(key)}
        assert len(tags) == 1
        assert layout.identifier(layout.bookkeeping(key)) == key

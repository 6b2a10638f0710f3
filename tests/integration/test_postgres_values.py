"""A row read from PostgreSQL equals the row that Debezium captured, value for value, for every type and its edges."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from daemon.core.change import Row
from daemon.errors import StopPipeline
from daemon.source.envelope import key_text
from daemon.source.postgres.reader import PostgresReader
from daemon.source.postgres.schema import TableSchema
from deploy.local.stack import Stack
from tests.support.captured_source import CapturedSource, Envelope

TYPES = """
create extension if not exists citext; create extension if not exists ltree;
create type $S_mood as enum ('sad', 'happy day');
create domain $S_whole as int check (value > 0); create domain $S_wholes as $S_whole;
create domain $S_money as numeric(10, 2); create domain $S_moment as timestamptz(3); create domain $S_name as citext;
"""

TEXTS = ["", "a", "é😀", 'line\nbreak\t"quote" \\ \u2028 </b>', "trailing  ", "\x01\x1f\x7f", "null"]
TIMESTAMPS = [
    "2024-01-01 00:00:00", "2024-01-01 12:34:56.120", "2024-01-01 12:34:56.123456", "2024-03-31 02:30:00",
    "0001-01-01 00:00:00", "0001-12-31 23:59:59 BC", "0044-03-15 12:00:00 BC", "4714-11-24 00:00:00 BC",
    "10000-01-01 00:00:00", "294276-12-31 23:59:59.999999", "1582-10-10 00:00:00", "1969-12-31 23:59:59.999999",
    "1500-03-01 01:02:03.1", "1883-11-18 00:00:00", "infinity", "-infinity",
]  # fmt: skip
DATES = [
    "2024-01-01", "1970-01-01", "0001-01-01", "0001-12-31 BC", "0044-03-15 BC", "4714-11-24 BC", "10000-01-01",
    "5874897-12-31", "1582-10-10", "1500-03-01", "infinity", "-infinity",
]  # fmt: skip
FLOATS4 = [
    "0", "-0", "1", "0.1", "3.4028235e38", "1e-45", "1.1754944e-38", "1e7", "16777217", "291.32813", "-9.572534e7",
    "9.999999e-4", "8.41e21", "NaN", "Infinity", "-Infinity",
]  # fmt: skip
FLOATS8 = [
    "0", "-0", "1", "0.1", "1e308", "5e-324", "1e7", "1e-7", "1e16", "1e21", "2e23", "123456789.123",
    "0.30000000000000004", "9007199254740993", "NaN", "Infinity", "-Infinity",
]  # fmt: skip
NUMERICS = [
    "0", "0.0", "1.10", "100", "1e20", "-0.000000001", "1234567890123456789012345678901234567890.12345678901234567890",
    "0.0000001000", "NaN", "Infinity", "-Infinity", "1e131071", "1e-16383",
]  # fmt: skip
INTERVALS = [
    "0", "1 year 2 months 3 days 04:05:06.789", "-1 year", "-14 mons", "1 day", "00:00:00.000001", "-00:00:00.5",
    "1 mon -1 day 01:00:00", "178000000 years", "36:00:00", "-100:00:00.1", "-01:30:00", "1 year -00:00:01",
    "-1 year 2 mons -3 days 04:05:06.7", "999999999:59:59.999999", "infinity", "-infinity",
]  # fmt: skip

COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "int2": ("int2", [0, -32768, 32767]),
    "int4": ("int4", [0, -2147483648, 2147483647]),
    "int8": ("int8", [0, -(2**63), 2**63 - 1, 9007199254740993]),
    "oid": ("oid", [0, 2**32 - 1]),
    "numeric": ("numeric", NUMERICS),
    "numeric_10_3": ("numeric(10, 3)", ["1", "1.5", "-1.500", "0", "9999999.999", "NaN"]),
    "numeric_5_0": ("numeric(5, 0)", ["12345", "NaN"]),
    "float4": ("float4", FLOATS4),
    "float8": ("float8", FLOATS8),
    "money": ("money", ["0", "1234.5", "-12.34", "92233720368547758.07"]),
    "bool": ("bool", [True, False]),
    "text": ("text", TEXTS),
    "varchar": ("varchar(40)", TEXTS),
    "char_40": ("char(40)", TEXTS),
    "letter": ('"char"', ["a", ""]),
    "citext": ("citext", ["Abc", "", "ÄÖ"]),
    "ltree": ("ltree", ["a.b.c"]),
    "uuid": ("uuid", ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "00000000-0000-0000-0000-000000000000"]),
    "json": ("json", ['{"a": 1,  "b":[1,2]}', "null", '"x"', "1.0", '{"c": "\\u00e9\\n"}']),
    "jsonb": ("jsonb", ['{"b": 1.00,  "a":[1,2], "aa":"é"}', "null", '"x"', "1.0", "1e5", '{"c": "\\u00e9\\n"}']),
    "date": ("date", DATES),
    "time": ("time", ["00:00:00", "24:00:00", "12:00", "12:34:56.1", "12:34:56.120", "23:59:59.999999"]),
    "time_0": ("time(0)", ["00:00:00", "23:59:59.9"]),
    "timetz": (
        "timetz",
        ["00:00:00+00", "24:00:00+00", "24:00:00+05:30", "12:34:56.120+02", "23:59:59.999999-12", "12:00:00+15:59",
         "00:30:00+01", "12:00:00.5-03:30", "23:00:00-02", "24:00:00-01"],
    ),
    "timestamp": ("timestamp", TIMESTAMPS),
    "timestamp_3": ("timestamp(3)", ["2024-01-01 00:00:00", "2024-01-01 12:34:56.12", "2024-01-01 12:34:56.1234"]),
    "timestamptz": ("timestamptz", [*TIMESTAMPS, "2024-01-01 12:34:56.120+02", "2024-07-01 00:00:00 Europe/Berlin"]),
    "timestamptz_3": ("timestamptz(3)", ["2024-01-01 00:00:00+00", "2024-01-01 12:34:56.12+00", "infinity"]),
    "timestamptz_0": ("timestamptz(0)", ["2024-01-01 00:00:00+00", "infinity"]),
    "interval": ("interval", INTERVALS),
    "interval_2": ("interval(2)", ["1.234"]),
    "bytea": ("bytea", [b"", b"\x00\xff\x10", b"abc"]),
    "bit_1": ("bit", ["1", "0"]),
    "bit_9": ("bit(9)", ["100000000", "000000001", "101010101", "000000000"]),
    "varbit": ("varbit", ["", "101", "1111111111"]),
    "inet": ("inet", ["192.168.0.1", "10.0.0.1/32", "10.0.0.1/24", "::1", "::ffff:1.2.3.4", "2001:DB8::1/64"]),
    "cidr": ("cidr", ["10.0.0.0/8", "192.168.0.1", "2001:db8::/32"]),
    "macaddr": ("macaddr", ["08-00-2B-01-02-03"]),
    "macaddr8": ("macaddr8", ["08:00:2b:01:02:03:04:05"]),
    "int4range": ("int4range", ["[1,5)", "empty", "(,)", "[1,5]"]),
    "int8range": ("int8range", ["[1,5)"]),
    "numrange": ("numrange", ["[1.0,2.50]"]),
    "daterange": ("daterange", ["[2024-01-01,2024-02-01]"]),
    "tsrange": ("tsrange", ['["2024-01-01 00:00:00","2024-01-02 00:00:00.12")']),
    "tsvector": ("tsvector", ["'a':1 'b':2A"]),
    "enum": ("$S_mood", ["sad", "happy day"]),
    "domain_int": ("$S_whole", [1, 2147483647]),
    "domain_domain": ("$S_wholes", [3]),
    "domain_numeric": ("$S_money", ["1", "1.5"]),
    "domain_timestamptz": ("$S_moment", ["2024-01-01 12:34:56.12+02"]),
    "domain_citext": ("$S_name", ["Ab"]),
    "int4_array": ("int4[]", ["{}", "{1,2,NULL}", "[2:3]={5,6}", "{{1,2},{3,4}}"]),
    "int2_array": ("int2[]", ["{1,-1}"]),
    "int8_array": ("int8[]", ["{9223372036854775807}"]),
    "oid_array": ("oid[]", ["{1}"]),
    "text_array": ("text[]", ["{}", '{a,NULL,"","x y","q\\"uote","b\\\\s","NULL","{","é,"}', '{"new\nline"}']),
    "varchar_array": ("varchar(3)[]", ["{a,abc}"]),
    "char_array": ("char(3)[]", ["{a,abc}"]),
    "letter_array": ('"char"[]', ["{a}"]),
    "citext_array": ("citext[]", ["{Abc,d}"]),
    "uuid_array": ("uuid[]", ["{A0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"]),
    "json_array": ("json[]", ['{"{\\"a\\":  1}"}']),
    "jsonb_array": ("jsonb[]", ['{"{\\"a\\":  1}",NULL}']),
    "numeric_array": ("numeric[]", ["{1,1.50,1e20,1e-10,NULL}"]),
    "numeric_2_array": ("numeric(10, 2)[]", ["{1,1.5,NULL}"]),
    "float4_array": ("float4[]", ["{0.1,1e10,NaN,16777217,-0,291.32813,NULL}"]),
    "float8_array": ("float8[]", ["{1,0.1,NaN,Infinity,1e21,NULL}"]),
    "bool_array": ("bool[]", ["{t,f,NULL}", "{{t}}"]),
    "bytea_array": ("bytea[]", ['{"\\\\x00ff",NULL}']),
    "inet_array": ("inet[]", ["{10.0.0.1,10.0.0.0/8}"]),
    "cidr_array": ("cidr[]", ["{10.0.0.0/8}"]),
    "macaddr_array": ("macaddr[]", ["{08:00:2b:01:02:03}"]),
    "enum_array": ("$S_mood[]", ['{sad,"happy day"}']),
}  # fmt: skip

KEYS: dict[str, tuple[str, str, str]] = {
    "k_uuid": ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12"),
    "k_int8": ("int8", "-9223372036854775808", "9223372036854775807"),
    "k_numeric": ("numeric", "1.10", "NaN"),
    "k_date": ("date", "0044-03-15 BC", "infinity"),
    "k_time": ("time", "12:00:00.5", "00:00:00"),
    "k_timestamp": ("timestamp", "10000-01-01 00:00:00.1", "0044-03-15 12:00:00.25 BC"),
    "k_timestamptz": ("timestamptz", "2024-01-01 00:00:00.12+00", "0044-03-15 12:00:00.25+00 BC"),
    "k_text": ("text", "a b/{}\"'\\", "é😀\n"),
    "k_char": ("char(4)", "ab", ""),
    "k_letter": ('"char"', "a", "b"),
    "k_citext": ("citext", "Ab", "aB"),
    "k_bytea": ("bytea", "\\x00ff", "\\x"),
    "k_bool": ("bool", "true", "false"),
    "k_enum": ("$S_mood", "happy day", "sad"),
    "k_inet": ("inet", "10.0.0.1/24", "::1"),
    "k_cidr": ("cidr", "10.0.0.0/8", "2001:db8::/32"),
    "k_macaddr": ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:04"),
    "k_macaddr8": ("macaddr8", "08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03:04:06"),
    "k_oid": ("oid", "0", "4294967295"),
    "k_domain": ("$S_whole", "1", "2"),
}


class Captured:
    """What Debezium wrote of two tables, and a reader of the same tables."""

    def __init__(self, captured: CapturedSource) -> None:
        self.source = captured
        self.values: dict[int, Row] = {}
        self.keys: list[Envelope] = []

    def capture(self) -> None:
        source = self.source
        for statement in TYPES.split(";")[:-1]:
            source.execute(statement)
        declared = ", ".join(f"{name} {kind}" for name, (kind, _) in COLUMNS.items())
        source.execute(f"create table $S_values (id int primary key, {declared})")
        declared = ", ".join(f"{name} {kind}" for name, (kind, *_) in KEYS.items())
        # Not the columns' order: the key's order is the index's.
        source.execute(f"create table $S_keys ({declared}, primary key ({', '.join(reversed(KEYS))}))")
        source.pipeline("$S_values", "{text}")
        source.pipeline("$S_keys", "{k_text}")
        # As for any table in which a pipeline needs such columns; else `exclusions` leaves them out.
        source.execute("alter table $S_values replica identity full")
        definition = source.definition()
        definition.pop("column.exclude.list")
        source.start(definition)
        source.execute("set timezone = 'UTC'")
        longest = max(len(values) for _, values in COLUMNS.values())
        for number in range(longest + 1):  # the last row has NULL in every column
            given = {name: values[number] for name, (_, values) in COLUMNS.items() if number < len(values)}
            names = "".join(f", {name}" for name in given)
            source.execute(
                f"insert into $S_values (id{names}) values (%s{', %s' * len(given)})",
                [number, *given.values()],
            )
        for place in (1, 2):
            row = [kind[place] for kind in KEYS.values()]
            source.execute(f"insert into $S_keys values ({', '.join(['%s'] * len(row))})", row)
        for envelope in source.envelopes("$S_values", lambda found: len(found) > longest):
            self.values[envelope.after["id"]] = envelope.after
        self.keys = source.envelopes("$S_keys", lambda found: len(found) >= 2)


@pytest.fixture(scope="module")
def captured(stack: Stack) -> Iterator[Captured]:
    source = CapturedSource(stack.addresses())
    try:
        captured = Captured(source)
        captured.capture()
        yield captured
    finally:
        source.execute("drop table if exists $S_values, $S_keys")
        source.stop()


@pytest.fixture
async def reader(captured: Captured) -> AsyncIterator[PostgresReader]:
    reader = PostgresReader(captured.source.source)
    yield reader
    await reader.close()


@pytest.fixture
async def table(captured: Captured, reader: PostgresReader) -> TableSchema:
    return await reader.schema(f"public.{captured.source.name}_values")


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1, 1.0 and true differ, and so do 0.0 and -0.0."""
    return json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_row_that_is_reread_equals_the_captured_one(
    captured: Captured, reader: PostgresReader, table: TableSchema, column: str
) -> None:
    normalise = table.normaliser([column]) or (lambda row: row)
    read = await reader.reread(table, [(str(number),) for number in captured.values], [column])
    rows = {row["id"]: row for row in read.rows}
    assert rows.keys() == captured.values.keys()
    for number, after in captured.values.items():
        expected = normalise(after)[column]
        assert same(rows[number][column], expected), (
            f"{number}: read {rows[number][column]!r}, captured {expected!r}"
        )
    given = COLUMNS[column][1]
    assert all(rows[number][column] is not None for number in range(len(given)))
    assert rows[len(captured.values) - 1][column] is None


async def test_a_row_of_a_chunk_equals_the_captured_one(
    captured: Captured, reader: PostgresReader, table: TableSchema
) -> None:
    normalise = table.normaliser(list(COLUMNS))
    assert normalise is not None
    read = await reader.chunk(table, None, 1000, list(COLUMNS))
    assert [same(row, normalise(captured.values[row["id"]])) for row in read.rows] == [True] * len(
        captured.values
    )


async def test_a_key_as_debezium_writes_it_finds_its_row(captured: Captured, reader: PostgresReader) -> None:
    table = await reader.schema(f"public.{captured.source.name}_keys")
    assert table.key == tuple(reversed(KEYS))
    for envelope in captured.keys:
        assert envelope.key is not None
        assert tuple(envelope.key) == table.key
        key = tuple(key_text(envelope.key[name]) for name in table.key)
        read = await reader.reread(table, [key], [])
        assert [table.key_of(row) for row in read.rows] == [key]
        assert same({name: row for row in read.rows for name, row in row.items()}, envelope.key)


async def test_chunks_follow_one_another_by_the_key_of_the_last_row(
    captured: Captured, reader: PostgresReader
) -> None:
    table = await reader.schema(f"public.{captured.source.name}_keys")
    first = await reader.chunk(table, None, 1, [])
    last = await reader.chunk(table, table.key_of(first.rows[0]), 10, [])
    keys = [table.key_of(row) for row in (*first.rows, *last.rows)]
    assert len(keys) == 2
    assert set(keys) == {
        tuple(key_text(one.key[name]) for name in table.key) for one in captured.keys if one.key
    }
    assert (await reader.chunk(table, keys[1], 10, [])).rows == ()
    assert (await reader.chunk(table, None, 10, [], until=keys[0])).rows == first.rows


async def test_a_key_that_only_its_type_holds_equal_is_another_document(
    captured: Captured, reader: PostgresReader
) -> None:
    captured.source.execute("create table $S_equal (id numeric primary key, title text)")
    try:
        captured.source.execute("insert into $S_equal values (1.00, 'a')")
        table = await reader.schema(f"public.{captured.source.name}_equal")
        assert (await reader.reread(table, [("1.0",), ("1",)], ["title"])).rows == ()
        read = await reader.reread(table, [("1.00",), ("1",)], ["title"])
        assert [table.key_of(row) for row in read.rows] == [("1.00",)]
    finally:
        captured.source.execute("drop table $S_equal")


@pytest.mark.parametrize(
    "kind", ["name", "tstzrange", "pg_lsn", "date[]", "numeric(4, -2)", "int4multirange"]
)
async def test_a_column_that_cannot_be_made_equal_is_refused_with_its_type(
    captured: Captured, reader: PostgresReader, kind: str
) -> None:
    captured.source.execute(f"create table $S_odd (id int primary key, odd {kind})")
    try:
        table = await reader.schema(f"public.{captured.source.name}_odd")
        with pytest.raises(StopPipeline, match=r"column 'odd' of .* is of type .*use another column"):
            await reader.reread(table, [("1",)], ["odd"])
    finally:
        captured.source.execute("drop table $S_odd")

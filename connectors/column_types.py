"""Which PostgreSQL types Debezium carries faithfully: three sets, each a fact seen with Debezium 3.7.

Names as in pg_type, of the base type where the column has a domain. Enums are carried too.
`daemon/source/postgres_values.py` converts exactly CAPTURED and CAPTURED_ELEMENTS; a test holds both together.
"""

NUMBERS = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8", "money", "oid"})
_TEXTS = frozenset({"text", "varchar", "bpchar", "char", "citext", "uuid", "json", "jsonb"})
_ADDRESSES = frozenset({"inet", "cidr", "macaddr"})
_TIMES = frozenset({"date", "time", "timestamp", "timestamptz"})
_RANGES = frozenset({"int4range", "int8range", "numrange", "daterange", "tsrange"})

CAPTURED = frozenset(
    {*NUMBERS, *_TEXTS, *_ADDRESSES, *_TIMES, *_RANGES, "macaddr8", "ltree", "tsvector", "bool", "bytea"}
    | {"timetz", "interval", "bit", "varbit"}
)
"""A value in an envelope equals the same value read directly."""

CAPTURED_ELEMENTS = frozenset(
    {"int2", "int4", "int8", "oid", "float4", "float8", "numeric", "bool", "bytea", *_TEXTS, *_ADDRESSES}
)
"""The same of arrays, by element. Debezium shifts old dates and times in arrays by the JVM's time zone."""

STEADY = CAPTURED - {"timetz", "bit", "varbit"} | {"hstore", "name", "tstzrange"}
STEADY_ELEMENTS = frozenset({"int4", "int8", "text", "varchar", "bpchar", "json", "jsonb"})
"""Types of which no value stops the connector, and an unchanged long value arrives as a placeholder.

Of the others, such as vector, float8[] or the array of an enum, an update that leaves a value alone which
PostgreSQL stores apart (TOAST) makes the task fail, unless the table's replica identity is FULL.
"""

KEYS = frozenset(
    {
        "int2",
        "int4",
        "int8",
        "oid",
        "numeric",
        "bool",
        "bytea",
        *_TEXTS - {"json", "jsonb"},
        *_ADDRESSES,
        *_TIMES,
    }
    | {"macaddr8"}
)
"""Types whose value can be looked up from the text in a record's key. Floats have no exact text."""

"""Which PostgreSQL types Debezium carries so that a direct read gives the same value.

Names as in pg_type, of the base type where the column has a domain. Enums are carried too.
`daemon/source/postgres_values.py` converts exactly these; a test holds both together.
"""

NUMBERS = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8", "money", "oid"})
_TEXTS = frozenset({"text", "varchar", "bpchar", "char", "citext", "uuid", "ltree", "json", "jsonb"})
_ADDRESSES = frozenset({"inet", "cidr", "macaddr", "macaddr8"})
_TIMES = frozenset({"date", "time", "timetz", "timestamp", "timestamptz", "interval"})
_RANGES = frozenset({"int4range", "int8range", "numrange", "daterange", "tsrange"})

CAPTURED = (
    NUMBERS
    | _TEXTS
    | _ADDRESSES
    | _TIMES
    | _RANGES
    | {"bool", "bytea", "bit", "varbit", "hstore", "tsvector"}
)

CAPTURED_ELEMENTS = frozenset(
    {"int2", "int4", "int8", "float4", "float8", "numeric", "bool", "oid", "bytea"}
    | _ADDRESSES - {"macaddr8"}
) | (_TEXTS - {"ltree"})
"""Element types of arrays. Dates and times are left out: Debezium shifts old ones by the JVM's time zone."""

KEYS = frozenset({"int2", "int4", "int8", "numeric", "bool", "oid", "bytea", "date", "time", "timestamp"}) | {
    "timestamptz",
    "text",
    "varchar",
    "bpchar",
    "char",
    "citext",
    "uuid",
    "inet",
    "cidr",
    "macaddr",
}
"""Types whose value can be looked up from the text in a record's key. Floats have no exact text."""

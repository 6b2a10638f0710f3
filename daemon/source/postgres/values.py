"""PostgreSQL's text of a value -> the value that Debezium's JSON carries for the same row.

Both sides start from the same text (a type's output function), so that a row read here and the row in an
envelope are equal value for value, and their content hashes with them. It holds for the settings that
`connectors/definition.py` writes (Debezium 3.7, JSON without schemas) and for the settings of a session below.

What Debezium makes of a value, seen and reproduced, however odd:
- numeric and money are text with all digits; NaN and infinities are NAN, POSITIVE_INFINITY, NEGATIVE_INFINITY.
- date, time, timestamp are ISO text with a Z, years beyond 9999 with a plus, 44 BC is -0043; timestamptz is in
  UTC with as many fraction digits as its precision, the others without trailing zeros. timetz is moved to UTC.
- infinity: timestamptz says so; date and timestamp carry the ends of Java's calendar; an infinite interval is zero.
- bit(1) is a boolean, other bit strings are base64 of their bits, lowest first, without leading zero bits.
- float4 differs in the last digits between Java's versions, so both sides pass through `float4`: an envelope's
  row by `TableSchema.normaliser`.

What cannot be made equal is refused by `codec`: types that Debezium leaves out (name, pg_lsn, xid, composite
types, multiranges), changes with the worker's time zone (tstzrange), or orders by a hash (hstore);
numeric with a negative scale; arrays of dates and times (old ones are shifted by the JVM's time zone).
Of arrays with more than one dimension only the outer length is kept, as Debezium does; it writes those
of text as addresses of Java objects, which no reader can make equal.
A timetz whose zone has seconds, a numeric array with NaN, an enum array with NULL stop the connector.
"""

import base64
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Decode = Callable[[str], Any]

SESSION = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
}
"""Settings of the session under which the text is read."""

_MICROSECONDS = 6
_FLOAT4 = struct.Struct("<f")
_DATE = re.compile(r"(\d+)-(\d\d-\d\d)( BC)?")
_DATE_ENDS = {"infinity": "+5877611-06-21Z", "-infinity": "-5877611-06-22Z"}
_TIMESTAMP_ENDS = {"infinity": "+292278994-08-16T23:00:00Z", "-infinity": "-292275055-05-16T23:00:00Z"}
_NUMERIC_ENDS = {"NaN": "NAN", "Infinity": "POSITIVE_INFINITY", "-Infinity": "NEGATIVE_INFINITY"}
_INTERVAL_PART = re.compile(r"([+-]?\d+) (year|mon|day)s?")
_INTERVAL_TIME = re.compile(r"([+-]?)(\d+):(\d\d):(\d\d)(\.\d+)?$")


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type beneath a column's domain; of an array, its element's.

    Attributes:
        name: as in pg_type.
        modifier: atttypmod, which carries a precision; -1: none.
    """

    name: str
    array: bool = False
    enum: bool = False
    modifier: int = -1


@dataclass(frozen=True, slots=True)
class Codec:
    """How a column is read.

    Attributes:
        decode: its text -> the value in Debezium's JSON.
        key_literal: the text of a record's key -> what the type's input function takes; None: not for keys.
        normalise: the value in an envelope -> the one that `decode` gives; None: it is the same.
        select: the expression to select, with {} for the quoted column.
    """

    decode: Decode
    key_literal: Callable[[str], str] | None = None
    normalise: Callable[[Any], Any] | None = None
    select: str = "{}"


def codec(column: ColumnType) -> Codec | None:
    """Return how to read a column of this type; None: it cannot be made equal to what Debezium carries."""
    if column.array:
        element = str if column.enum else _ELEMENTS.get(column.name)
        if element is None:
            return None
        return Codec(_array(element), normalise=_float4s if element is _float4 else None)
    if column.enum:
        return Codec(str, str)
    if column.name in ("bit", "varbit"):
        return Codec("1".__eq__ if column.modifier == 1 else _bits)
    if column.name == "timestamptz":
        digits = _MICROSECONDS if column.modifier < 0 else column.modifier
        return Codec(lambda text: _timestamptz(text, digits), _timestamp_literal)
    if column.name == "numeric" and column.modifier >= 4 and (column.modifier - 4) & 1024:
        return None
    return _SCALARS.get(column.name)


def _float8(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _float4(text: str) -> Any:
    return float4(_float8(text))


def float4(value: Any) -> Any:
    """Return one decimal for all texts of a float4: JDK 17 writes 291.32812 where PostgreSQL writes 291.32813."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return value
    exact = _FLOAT4.unpack(_FLOAT4.pack(value))[0]
    for digits in (6, 7, 8):
        short = float(f"{exact:.{digits}g}")
        if _FLOAT4.unpack(_FLOAT4.pack(short))[0] == exact:
            return short
    return float(f"{exact:.9g}")


def _float4s(values: Any) -> Any:
    return [float4(value) for value in values] if isinstance(values, list) else values


def _numeric(text: str) -> str:
    return _NUMERIC_ENDS.get(text, text)


def _bytea(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text[2:])).decode()


def _bits(text: str) -> str:
    number = int(text or "0", 2)
    return base64.b64encode(number.to_bytes((number.bit_length() + 7) // 8, "little")).decode()


def _date(text: str) -> str:
    return _DATE_ENDS.get(text) or _iso_date(text) + "Z"


def _iso_date(text: str) -> str:
    """Return an ISO date with an astronomical year: 1 BC is year 0."""
    match = _DATE.match(text)
    if match is None:
        raise ValueError("not a date")
    year = int(match[1])
    if text.endswith(" BC"):
        shown = f"-{year - 1:04d}" if year > 1 else "0000"
    else:
        shown = f"+{year}" if year > 9999 else f"{year:04d}"
    return f"{shown}-{match[2]}"


def _time(text: str) -> str:
    return ("00:00:00" if text == "24:00:00" else text) + "Z"


def _timetz(text: str) -> str:
    """Return the time at UTC; 24:00:00 at UTC stays."""
    clock, sign, zone = re.split(r"([+-])", text, maxsplit=1)
    hours, minutes, seconds = clock.split(":")
    whole, point, fraction = seconds.partition(".")
    zone_hours, _, zone_minutes = zone.partition(":")
    shift = int(zone_hours) * 60 + int(zone_minutes[:2] or 0)
    total = int(hours) * 60 + int(minutes) + (shift if sign == "-" else -shift)
    if shift or int(hours) != 24:
        total %= 24 * 60
    return f"{total // 60:02d}:{total % 60:02d}:{whole}{point}{fraction}Z"


def _timestamp(text: str) -> str:
    return _TIMESTAMP_ENDS.get(text) or f"{_iso_date(text)}T{_clock(text)}Z"


def _timestamptz(text: str, digits: int) -> str:
    if text.endswith("infinity"):
        return text
    whole, _, fraction = _clock(text).partition(".")
    return f"{_iso_date(text)}T{whole}{'.' if digits else ''}{fraction.ljust(digits, '0')}Z"


def _clock(text: str) -> str:
    return text.split(" ", 2)[1].partition("+")[0]


def _interval(text: str) -> str:
    parts = {unit: int(number) for number, unit in _INTERVAL_PART.findall(text)}
    hours, minutes, seconds = "0", "0", "0"
    if (time := _INTERVAL_TIME.search(text)) is not None:
        sign = "-" if time[1] == "-" else ""
        hours, minutes = (_signed(sign, time[group]) for group in (2, 3))
        whole = str(int(time[4])) + (time[5] or "")
        seconds = "0" if float(whole) == 0 else sign + whole
    date = f"P{parts.get('year', 0)}Y{parts.get('mon', 0)}M{parts.get('day', 0)}D"
    return f"{date}T{hours}H{minutes}M{seconds}S"


def _signed(sign: str, digits: str) -> str:
    number = int(digits)
    return f"{sign}{number}" if number else "0"


def _array(element: Decode) -> Decode:
    def decode(text: str) -> list[Any]:
        return [
            None if item is None or isinstance(item, list) else element(item) for item in parse_array(text)
        ]

    return decode


def parse_array(text: str) -> list[Any]:
    """Return the elements of an array's text as text or None; those of inner dimensions as lists."""
    stack: list[list[Any]] = [[]]
    for match in _ARRAY_TOKEN.finditer(text, text.index("{")):
        opening, closing, quoted, bare = match.groups()
        if opening:
            stack.append([])
        elif closing:
            inner = stack.pop()
            stack[-1].append(inner)
        elif quoted is not None:
            stack[-1].append(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
        else:
            stack[-1].append(None if bare == "NULL" else bare)
    elements = stack[0][0]
    assert isinstance(elements, list)
    return elements


_ARRAY_TOKEN = re.compile(r'(\{)|(\})|"((?:[^"\\]|\\.)*)"|([^{},"]+)', re.DOTALL)


# ---- from the text in a record's key back to what the type's input function takes


_NUMERIC_LITERALS = {shown: name for name, shown in _NUMERIC_ENDS.items()}
_DATE_LITERALS = {shown: name for name, shown in _DATE_ENDS.items()}
# timestamptz shows an infinity as it is.
_TIMESTAMP_LITERALS = {shown: name for name, text in _TIMESTAMP_ENDS.items() for shown in (text, name)}


def _numeric_literal(text: str) -> str:
    return _NUMERIC_LITERALS.get(text, text)


def _bytea_literal(text: str) -> str:
    return "\\x" + base64.b64decode(text, validate=True).hex()


def _date_literal(text: str) -> str:
    return _DATE_LITERALS.get(text) or _with_era(text.removesuffix("Z"), "")


def _timestamp_literal(text: str) -> str:
    date, _, clock = text.partition("T")
    return _TIMESTAMP_LITERALS.get(text) or _with_era(date, " " + clock)


def _with_era(date: str, clock: str) -> str:
    """Return a date with an astronomical year, as PostgreSQL writes it."""
    match = re.fullmatch(r"([+-]?)(\d+)(-\d\d-\d\d)", date)
    if match is None:
        raise ValueError("not a date")
    year = int(match[2])
    if match[1] == "-" or year == 0:
        return f"{year + 1:04d}{match[3]}{clock} BC"
    return f"{year:04d}{match[3]}{clock}"


_SCALARS: dict[str, Codec] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), Codec(int, str)),
    **dict.fromkeys(
        ("text", "varchar", "bpchar", "char", "citext", "uuid", "inet", "cidr", "macaddr", "macaddr8"),
        Codec(str, str),
    ),
    **dict.fromkeys(
        ("json", "jsonb", "ltree", "tsvector", "int4range", "int8range", "numrange", "daterange", "tsrange"),
        Codec(str),
    ),
    "bool": Codec("t".__eq__, str),
    "float4": Codec(_float4, normalise=float4),
    "float8": Codec(_float8),
    "numeric": Codec(_numeric, _numeric_literal),
    "money": Codec(_numeric, select="{}::numeric"),
    "bytea": Codec(_bytea, _bytea_literal),
    "date": Codec(_date, _date_literal),
    "time": Codec(_time, lambda text: text.removesuffix("Z")),
    "timetz": Codec(_timetz),
    "timestamp": Codec(_timestamp, _timestamp_literal),
    "interval": Codec(_interval),
}
_ELEMENTS: dict[str, Decode] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), int),
    **dict.fromkeys(
        ("text", "varchar", "bpchar", "char", "citext", "uuid", "inet", "cidr", "macaddr", "json", "jsonb"),
        str,
    ),
    "bool": "t".__eq__,
    "float4": _float4,
    "float8": _float8,
    "numeric": _numeric,
    "bytea": _bytea,
}
SCALAR_TYPES = frozenset(_SCALARS) | {"bit", "varbit", "timestamptz"}
"""Names of the types, other than arrays and enums, that `codec` takes."""

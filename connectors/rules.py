"""Findings of all checks, and what a Debezium connector's definition must say, whoever wrote it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: a short, stable word, e.g. `wal_level`.
        ok: whether it is as it must be.
        message: what was found.
        remedy: what to run or change; empty when ok.
    """

    check: str
    ok: bool
    message: str
    remedy: str = ""


def passed(check: str, message: str) -> Finding:
    return Finding(check, True, message)


def failed(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, False, message, remedy)


def judged(check: str, ok: bool, message: str, problem: str, remedy: str) -> Finding:
    """Return a finding with the message where it is ok, else with the problem and its remedy."""
    return passed(check, message) if ok else failed(check, problem, remedy)


POSTGRES_CLASS = "io.debezium.connector.postgresql.PostgresConnector"
_INSERT_HEADER = "org.apache.kafka.connect.transforms.InsertHeader"
_JSON = "org.apache.kafka.connect.json.JsonConverter"


@dataclass(frozen=True, slots=True)
class _Rule:
    """One setting: the values that lose or bend no row (the first is the one to write), Debezium's default, what goes
    wrong with any other value, and the pattern of further values that are as good."""

    key: str
    allowed: tuple[str, ...]
    default: str
    harm: str
    pattern: str = "(?!)"

    def check(self, definition: Mapping[str, str]) -> Finding:
        value = definition.get(self.key, self.default).strip()
        allowed = value.lower() in {allowed.lower() for allowed in self.allowed}
        shown = repr(value) if self.key in definition else f"not set, which means {value!r}"
        return judged(
            self.key,
            allowed or re.match(self.pattern, value, re.IGNORECASE) is not None,
            f"{self.key} is {value!r}",
            f"{self.key} is {shown}: {self.harm}",
            f"set {self.key}={self.allowed[0]}",
        )


WRITTEN = (
    _Rule("connector.class", (POSTGRES_CLASS,), "", "livevec reads the envelope of this connector"),
    _Rule("plugin.name", ("pgoutput",), "decoderbufs", "decoderbufs needs an extension and drops TRUNCATE"),
    _Rule(
        "offset.mismatch.strategy",
        ("trust_offset",),
        "no_validation",
        "the slot and the stored offset are not compared, or one gives way to the other and changes are skipped",
    ),
    _Rule("skipped.operations", ("none",), "t", "operations are left out; the default drops TRUNCATE"),
    _Rule(
        "event.processing.failure.handling.mode", ("fail",), "fail", "an event that fails would be left out"
    ),
    _Rule(
        "event.converting.failure.handling.mode",
        ("fail",),
        "warn",
        "a value that cannot be converted would become NULL",
    ),
    _Rule("errors.tolerance", ("none",), "none", "records that fail would be left out"),
    _Rule(
        "snapshot.mode",
        ("initial", "no_data"),
        "initial",
        "other modes read the tables again by themselves and so hide that changes were lost",
    ),
    _Rule("slot.drop.on.stop", ("false",), "false", "changes made while the connector is stopped are lost"),
    _Rule(
        "publication.autocreate.mode",
        ("disabled",),
        "all_tables",
        "Debezium would change the publication that the preflight has checked",
    ),
    _Rule("decimal.handling.mode", ("string",), "precise", "numeric values would arrive as bytes"),
    # Text instead of numbers since 1970: a date in a text template reads as a date.
    _Rule("time.precision.mode", ("isostring",), "adaptive", "dates and times would arrive as numbers"),
    _Rule("interval.handling.mode", ("string",), "numeric", "intervals would arrive as approximate numbers"),
    _Rule("hstore.handling.mode", ("json",), "json", "hstore values would not equal those read directly"),
    _Rule(
        "binary.handling.mode", ("bytes", "base64"), "bytes", "bytea would not equal what is read directly"
    ),
    _Rule("key.converter", (_JSON,), "", "livevec reads JSON"),
    _Rule("key.converter.schemas.enable", ("false",), "true", "livevec reads JSON without schemas"),
    _Rule("value.converter", (_JSON,), "", "livevec reads JSON"),
    _Rule("value.converter.schemas.enable", ("false",), "true", "livevec reads JSON without schemas"),
    _Rule(
        "heartbeat.interval.ms",
        ("1000",),
        "0",
        "freshness is not known while the tables are idle",
        pattern=r"0*[1-9]\d*$",
    ),
    _Rule(
        "heartbeat.action.query",
        ("SELECT pg_logical_emit_message(true, 'livevec', '')",),
        "",
        # The message comes through the log: all that was committed before it has arrived.
        "Debezium's heartbeat alone goes on while the log stands still, and the slot holds back log while only other "
        "tables are written",
        pattern=r"(?s:.*)pg_logical_emit_message\s*\(\s*true",
    ),
)
_KEPT_DEFAULTS = (
    _Rule("field.name.adjustment.mode", ("none",), "none", "columns would have other names"),
    _Rule(
        "unavailable.value.placeholder",
        ("__debezium_unavailable_value",),
        "__debezium_unavailable_value",
        "livevec could not tell an unchanged long value from a text",
    ),
    _Rule("message.key.columns", ("",), "", "a record's key must be the primary key"),
    _Rule(
        "internal.log.position.check.enable",
        ("true",),
        "true",
        "an offset that the log no longer holds would go unnoticed",
    ),
)


def check_definition(definition: Mapping[str, str]) -> list[Finding]:
    """Check a connector's configuration, ours or one deployed by someone else: one finding per rule."""
    return [*(rule.check(definition) for rule in (*WRITTEN, *_KEPT_DEFAULTS)), _transforms(definition)]


def _transforms(definition: Mapping[str, str]) -> Finding:
    """Check that only headers are added: any other transform may change, drop or re-route records."""
    names = [name.strip() for name in definition.get("transforms", "").split(",") if name.strip()]
    kinds = {name: definition.get(f"transforms.{name}.type", "") for name in names}
    other = sorted(f"{name} ({kind})" for name, kind in kinds.items() if kind != _INSERT_HEADER)
    return judged(
        "transforms",
        not other,
        "no transform changes the envelope",
        f"the definition transforms records: {', '.join(other)}; livevec reads Debezium's own envelope",
        "remove these transforms; other readers can apply theirs when they consume",
    )

"""The connector's definition, and the rules that any definition must keep."""

import re

import pytest
from pydantic import SecretStr

from connectors.definition import render
from connectors.rules import check_definition
from daemon.errors import ConnectorError
from daemon.settings import Pipeline, PostgresSource


def source(**settings: object) -> PostgresSource:
    return PostgresSource(
        **{"name": "shop", "dsn": SecretStr("postgresql://livevec:secret@db:6432/shop"), **settings}
    )


def pipeline(table: str = "public.catalog", name: str = "catalog") -> Pipeline:
    return Pipeline(name=name, source="shop", table=table, text="{title}")


def test_our_own_definition_keeps_every_rule() -> None:
    assert [finding for finding in check_definition(render(source(), [pipeline()])) if not finding.ok] == []


def test_the_definition_is_the_same_whatever_the_order_of_the_pipelines() -> None:
    one, other = pipeline("public.b", "b"), pipeline("public.a", "a")
    assert render(source(), [one, other, one]) == render(source(), [other, one])


def test_the_connector_logs_in_as_the_connection_string_says() -> None:
    dsn = SecretStr(
        "host=db port=6432 user=u password='p w' dbname=shop sslmode=verify-full sslrootcert=/ca.pem"
    )
    definition = render(source(capture_dsn=dsn), [pipeline()])
    database = {key: value for key, value in definition.items() if key.startswith("database.")}
    assert database == {
        "database.hostname": "db",
        "database.port": "6432",
        "database.user": "u",
        "database.password": "p w",
        "database.dbname": "shop",
        "database.sslmode": "verify-full",
        "database.sslrootcert": "/ca.pem",
    }


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("postgresql://a:1,b:2/shop?user=u", "set `capture_dsn`"),
        ("host=/tmp user=u dbname=shop", "set `capture_dsn`"),
        ("host=db dbname=shop", "names no user"),
        ("host=db user=u", "names no dbname"),
        ("host=db nonsense", "write it as postgresql://"),
    ],
)
def test_a_connection_string_that_debezium_cannot_use_is_refused(dsn: str, message: str) -> None:
    with pytest.raises(ConnectorError, match=message):
        render(source(dsn=SecretStr(dsn)), [pipeline()])


def test_a_source_that_no_pipeline_reads_is_refused() -> None:
    with pytest.raises(ConnectorError, match="no pipeline reads source 'shop'"):
        render(source(), [])


@pytest.mark.parametrize(
    "table", ["public.catalog", "public.a, b", "Schema.x{2}|.*", "public.o'd $x\\y", "public.é"]
)
def test_a_table_name_matches_itself_and_nothing_else(table: str) -> None:
    definition = render(source(), [pipeline(table)])
    (pattern,) = definition["table.include.list"].split(",")
    assert re.fullmatch(
        re.sub(r"\\x\{([0-9a-f]+)\}", lambda code: re.escape(chr(int(code[1], 16))), pattern), table
    )
    assert "." not in pattern.replace("\\.", "")


def test_left_out_columns_are_added_to_those_of_the_configuration() -> None:
    own = source(connector={"column.exclude.list": "public.catalog.secret"})
    definition = render(own, [pipeline()], ["public.catalog.vector"])
    assert definition["column.exclude.list"] == r"public.catalog.secret,public\.catalog\.vector"
    assert "column.exclude.list" not in render(source(), [pipeline()])


def test_a_setting_of_the_configuration_replaces_ours() -> None:
    assert render(source(connector={"snapshot.fetch.size": "7"}), [pipeline()])["snapshot.fetch.size"] == "7"


BROKEN = {
    "connector.class": "io.debezium.connector.mysql.MySqlConnector",
    "plugin.name": "decoderbufs",
    "offset.mismatch.strategy": "trust_greater_lsn",
    "skipped.operations": "t",
    "event.processing.failure.handling.mode": "warn",
    "event.converting.failure.handling.mode": "skip",
    "errors.tolerance": "all",
    "snapshot.mode": "when_needed",
    "slot.drop.on.stop": "true",
    "publication.autocreate.mode": "filtered",
    "decimal.handling.mode": "double",
    "time.precision.mode": "connect",
    "interval.handling.mode": "numeric",
    "hstore.handling.mode": "map",
    "binary.handling.mode": "hex",
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "key.converter.schemas.enable": "true",
    "value.converter": "io.confluent.connect.avro.AvroConverter",
    "value.converter.schemas.enable": "true",
    "field.name.adjustment.mode": "avro",
    "unavailable.value.placeholder": "-",
    "message.key.columns": "public.catalog:sku",
    "internal.log.position.check.enable": "false",
    "heartbeat.interval.ms": "0",
    "heartbeat.action.query": "SELECT pg_logical_emit_message(false, 'x', '')",
}


@pytest.mark.parametrize("key", BROKEN)
def test_a_setting_that_could_lose_or_bend_rows_is_refused_with_the_value_to_set(key: str) -> None:
    definition = {**render(source(), [pipeline()]), key: BROKEN[key]}
    (finding,) = [finding for finding in check_definition(definition) if not finding.ok]
    assert finding.check == key
    assert BROKEN[key] in finding.message
    assert finding.remedy.startswith(f"set {key}=")
    if key != "connector.class":
        with pytest.raises(ConnectorError, match=re.escape(f"set {key}=")):
            render(source(connector={key: BROKEN[key]}), [pipeline()])


def test_every_rule_has_been_seen_to_fail() -> None:
    checks = {finding.check for finding in check_definition({})}
    assert checks == {*BROKEN, "transforms"}


def test_a_setting_that_is_missing_counts_as_debeziums_default() -> None:
    refused = {finding.check for finding in check_definition({}) if not finding.ok}
    assert {
        "offset.mismatch.strategy",
        "skipped.operations",
        "event.converting.failure.handling.mode",
    } <= refused
    assert "errors.tolerance" not in refused


def test_a_transform_that_changes_the_envelope_is_refused() -> None:
    unwrap = {
        "transforms": "era,unwrap",
        "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    }
    (finding,) = [one for one in check_definition({**render(source(), [pipeline()]), **unwrap}) if not one.ok]
    assert "unwrap (io.debezium.transforms.ExtractNewRecordState)" in finding.message

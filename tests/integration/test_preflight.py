"""Each check of the preflight, seen to fail and to pass again once its remedy was followed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from connectors import preflight
from connectors.definition import RECORD_BYTES_MAX
from connectors.prepare import prepare
from connectors.rules import Finding
from daemon.errors import ConnectorError
from daemon.settings import KafkaSettings, MetadataField, Pipeline, PostgresSource
from deploy.local.stack import Stack
from tests.support.captured_source import CapturedSource
from tests.support.mirrored_table import wait_until
from tests.support.postgres_cluster import postgres_cluster

TABLE = "create table $S_t (id int primary key, title text, price numeric, tags text[])"


@pytest.fixture
def source(stack: Stack) -> Iterator[CapturedSource]:
    """A source that is fit: table $S_t, publication and topics are there."""
    source = CapturedSource(stack.addresses())
    source.execute(TABLE)
    source.pipeline("$S_t", "{title}", [MetadataField(column="price", type="numeric")])
    try:
        prepare(source.source, source.pipelines, source.kafka)
        yield source
    finally:
        source.stop()
        with psycopg.connect(stack.addresses().postgres_dsn, autocommit=True) as connection:
            connection.execute(f"drop table if exists {source.name}_t cascade")


def check(source: CapturedSource) -> list[Finding]:
    return preflight.check(source.source, source.pipelines, source.kafka)


def refused(source: CapturedSource) -> list[Finding]:
    return [finding for finding in check(source) if not finding.ok]


def test_a_prepared_source_is_fit(source: CapturedSource) -> None:
    assert refused(source) == []
    checks = {finding.check for finding in check(source)}
    assert checks >= {
        "version",
        "primary",
        "wal_level",
        "replication_right",
        "slot",
        "wal_senders",
        "publication",
    }
    assert checks >= {
        "table",
        "primary_key",
        "replica_identity",
        "select_right",
        "row_security",
        "column",
        "topic",
    }


def test_preparing_twice_does_nothing(source: CapturedSource) -> None:
    assert prepare(source.source, source.pipelines, source.kafka) == []


def test_nothing_is_created_where_the_source_does_not_allow_it(stack: Stack) -> None:
    source = CapturedSource(stack.addresses(), create_publication=False, create_topics=False)
    source.execute(TABLE)
    source.pipeline("$S_t", "{title}")
    try:
        assert prepare(source.source, source.pipelines, source.kafka) == []
        assert {finding.check for finding in refused(source)} == {"publication", "topic"}
    finally:
        source.execute("drop table $S_t")
        source.stop()


@dataclass(frozen=True)
class Broken:
    """SQL that breaks one thing, and what the preflight must say of it; the remedy must be SQL that repairs it."""

    sql: str
    check: str
    message: str


BROKEN = {
    "no replication right": Broken("create role $S_role login; grant select on $S_t to $S_role", "replication_right",
                                   "may not start replication"),
    "no select right": Broken("create role $S_role login replication", "select_right", "may not read public.$S_t"),
    "row security": Broken(
        "create role $S_role login replication; grant select on $S_t to $S_role; "
        "alter table $S_t enable row level security", "row_security", "would look deleted"),
    "publication without truncate": Broken("alter publication livevec_$S set (publish = 'insert, update')",
                                           "publication_operations", "leaves out delete, truncate"),
    "publication without the table": Broken("alter publication livevec_$S drop table $S_t", "publication_table",
                                            "does not carry public.$S_t"),
    "replica identity nothing": Broken("alter table $S_t replica identity nothing", "replica_identity", "is NOTHING"),
    "replica identity of another index": Broken(
        "alter table $S_t alter title set not null; create unique index $S_i on $S_t (title); "
        "alter table $S_t replica identity using index $S_i", "replica_identity", "an index that may not be"),
    "deferrable key": Broken(
        "alter table $S_t drop constraint $S_t_pkey, add constraint $S_t_pkey primary key (id) deferrable",
        "primary_key", "is deferrable"),
    "unlogged": Broken("alter publication livevec_$S drop table $S_t; alter table $S_t set unlogged", "table",
                       "is unlogged"),
    "column that may stop the connector": Broken("alter table $S_t alter price type float8[] using null",
                                                 "column_type", "stored apart"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_found_and_its_remedy_repairs_it(source: CapturedSource, case: str) -> None:
    broken = BROKEN[case]
    if case.startswith("column"):
        source.pipelines[0] = source.pipelines[0].model_copy(
            update={"metadata": (MetadataField(column="price"),)}
        )
    for statement in broken.sql.split(";"):
        source.execute(statement)
    try:
        if "$S_role" in broken.sql:
            dsn = make_conninfo(source.source.dsn.get_secret_value(), user=f"{source.name}_role")
            source.source = source.source.model_copy(update={"dsn": SecretStr(dsn)})
        found = [one for one in refused(source) if one.check == broken.check]
        assert len(found) == 1, refused(source)
        assert broken.message.replace("$S", source.name) in found[0].message
        for statement in found[0].remedy.split(" or use ")[0].rstrip(", ").split(";"):
            source.execute(statement.removesuffix(", then restart PostgreSQL"))
        if case == "unlogged":
            prepare(
                source.source.model_copy(update={"dsn": SecretStr(source.db.info.dsn)}),
                source.pipelines,
                source.kafka,
            )
        assert [one for one in refused(source) if one.check != "publication_table"] == []
    finally:
        if "$S_role" in broken.sql:
            source.execute("drop owned by $S_role; drop role $S_role")
            source.source = source.source.model_copy(update={"dsn": SecretStr(source.db.info.dsn)})


def test_a_missing_role_of_the_connector_is_found(source: CapturedSource) -> None:
    dsn = make_conninfo(source.source.dsn.get_secret_value(), user="nobody_here")
    source.source = source.source.model_copy(update={"capture_dsn": SecretStr(dsn)})
    assert [one.remedy for one in refused(source)] == [
        """CREATE ROLE "nobody_here" LOGIN REPLICATION PASSWORD '...'"""
    ]


def test_a_table_without_a_primary_key_is_refused(source: CapturedSource) -> None:
    source.execute("alter table $S_t drop constraint $S_t_pkey, replica identity full")
    (found,) = refused(source)
    assert (found.check, "ADD PRIMARY KEY" in found.remedy) == ("primary_key", True)


def test_a_key_that_cannot_be_looked_up_by_its_text_is_refused(source: CapturedSource) -> None:
    source.execute("alter table $S_t alter id type float8")
    (found,) = refused(source)
    assert found.check == "key_type"
    assert "id (float8)" in found.message


def test_a_table_or_column_that_does_not_exist_is_found_with_the_nearest_name(source: CapturedSource) -> None:
    fit = source.pipelines[0]
    source.pipelines[0] = fit.model_copy(
        update={"text": "{titel}", "metadata": (MetadataField(column="prize"),)}
    )
    source.pipelines[0].__dict__.pop("columns", None)
    assert [one.remedy.split("; ")[1] for one in refused(source)] == [
        "did you mean 'title'?",
        "did you mean 'price'?",
    ]
    source.pipelines[0] = fit.model_copy(
        update={"table": f"public.{source.name}_u", "topic": f"{source.name}.public.{source.name}_t"}
    )
    (found,) = refused(source)
    assert found.remedy.endswith(f"did you mean 'public.{source.name}_t'?")


@pytest.mark.parametrize(
    ("kind", "metadata", "message"),
    [
        (
            "tstzrange",
            MetadataField(column="price"),
            "is of type tstzrange, which Debezium does not carry faithfully",
        ),
        ("name", MetadataField(column="price"), "is of type name, which Debezium does not carry faithfully"),
        (
            "date[]",
            MetadataField(column="price"),
            "is of type date[], which Debezium does not carry faithfully",
        ),
        (
            "timestamptz",
            MetadataField(column="price", type="numeric"),
            "is of type timestamptz but declared numeric",
        ),
        ("int4[]", MetadataField(column="price", type="numeric"), "is of type int4[] but declared numeric"),
    ],
)
def test_a_column_of_an_unfit_type_is_refused(
    source: CapturedSource, kind: str, metadata: MetadataField, message: str
) -> None:
    source.execute(f"alter table $S_t alter price type {kind} using null")
    source.pipelines[0] = source.pipelines[0].model_copy(update={"metadata": (metadata,)})
    (found,) = refused(source)
    assert (found.check, message in found.message) == ("column_type", True)


def test_a_view_is_refused(source: CapturedSource) -> None:
    source.execute("create view $S_v as select * from $S_t")
    source.pipelines[0] = source.pipelines[0].model_copy(
        update={"table": f"public.{source.name}_v", "topic": f"{source.name}.public.{source.name}_t"}
    )
    (found,) = refused(source)
    assert "is a view, which has no log" in found.message


def test_a_row_filter_is_refused(source: CapturedSource) -> None:
    source.execute("alter publication livevec_$S set table $S_t where (id > 5)")
    (found,) = refused(source)
    assert (found.check, "filters the rows" in found.message) == ("publication_filter", True)
    _follow(source, found)
    assert refused(source) == []


def test_a_column_list_without_a_needed_column_is_refused(source: CapturedSource) -> None:
    source.execute("alter publication livevec_$S set table $S_t (id, price)")
    (found,) = refused(source)
    assert (found.check, "['title']" in found.message) == ("publication_columns", True)
    _follow(source, found)
    assert refused(source) == []


def test_a_generated_column_must_be_published(source: CapturedSource) -> None:
    source.execute("alter table $S_t drop title, add title text generated always as (upper(tags[1])) stored")
    assert refused(source) == []
    source.execute("alter publication livevec_$S set (publish_generated_columns = none)")
    (found,) = refused(source)
    assert "generated columns are not published: title" in found.message
    source.execute(re.search(r"ALTER PUBLICATION .* = stored\)", found.remedy)[0])  # type: ignore[index]
    assert refused(source) == []


def test_unpublished_columns_beside_a_domain_over_an_enum_are_refused(source: CapturedSource) -> None:
    source.execute("create type $S_mood as enum ('sad'); create domain $S_feeling as $S_mood")
    try:
        source.execute("alter table $S_t add lower text generated always as (lower(title)) virtual")
        assert refused(source) == []
        source.execute("alter table $S_t add feeling $S_feeling")
        (found,) = refused(source)
        assert "Debezium would put values into wrong columns" in found.message
    finally:
        source.execute("drop domain $S_feeling cascade; drop type $S_mood")


def test_a_partitioned_table_is_published_through_its_root(source: CapturedSource) -> None:
    source.execute("drop table $S_t")
    source.execute(
        "create table $S_t (id int, title text, price int, primary key (id)) partition by range (id)"
    )
    source.execute("create table $S_p partition of $S_t for values from (0) to (100)")
    prepare(source.source, source.pipelines, source.kafka)
    assert refused(source) == []
    source.execute("alter publication livevec_$S set (publish_via_partition_root = false)")
    (found,) = refused(source)
    assert "names the partitions" in found.message
    source.execute(found.remedy)
    assert refused(source) == []
    source.execute("alter table $S_p replica identity nothing")
    (found,) = refused(source)
    assert (found.check, f"{source.name}_p is NOTHING" in found.message) == ("replica_identity", True)


def test_a_slot_of_another_plugin_is_refused(source: CapturedSource) -> None:
    source.execute(
        "select pg_create_logical_replication_slot(%s, 'test_decoding')", [source.source.slot_name]
    )
    (found,) = refused(source)
    assert "with plugin 'test_decoding' exists" in found.message


def test_a_source_that_cannot_be_reached_is_one_finding(source: CapturedSource) -> None:
    source.source = source.source.model_copy(update={"dsn": SecretStr("postgresql://u@127.0.0.1:9/x")})
    found = refused(source)
    assert [one.check for one in found] == ["connection"]
    source.source = source.source.model_copy(update={"dsn": SecretStr(source.db.info.dsn)})


def test_missing_topics_are_found_and_created(source: CapturedSource) -> None:
    admin = AdminClient({"bootstrap.servers": source.kafka.bootstrap_servers})
    names = [f"{source.name}.public.{source.name}_t", f"__debezium-heartbeat.{source.name}", f"{source.name}.message",
             f"{source.name}-0.livevec.dead_letters"]  # fmt: skip
    for deleted in admin.delete_topics(names).values():
        deleted.result()
    wait_until(lambda: not set(names) & set(admin.list_topics(timeout=10).topics), 20)
    assert [one.check for one in refused(source)] == ["topic"] * 4
    assert prepare(source.source, source.pipelines, source.kafka) == [
        f"created topic {name}" for name in names
    ]
    wait_until(lambda: refused(source) == [], 20)


def test_a_topic_that_takes_only_small_records_is_refused(source: CapturedSource) -> None:
    admin = AdminClient({"bootstrap.servers": source.kafka.bootstrap_servers})
    topic = f"{source.name}.public.{source.name}_t"
    entry = ConfigEntry("max.message.bytes", "1000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for altered in admin.incremental_alter_configs([resource]).values():
        altered.result()
    (found,) = wait_until(lambda: refused(source), 20)
    assert (found.check, str(RECORD_BYTES_MAX) in found.remedy) == ("topic_record_size", True)


def test_a_name_that_is_no_topic_is_refused_with_the_one_debezium_writes(source: CapturedSource) -> None:
    source.pipelines[0] = source.pipelines[0].model_copy(update={"table": "public.a b"})
    (found,) = [one for one in refused(source) if one.check == "topic_name"]
    assert found.remedy == f"set the pipeline's `topic` to '{source.name}.public.a_b'"


def test_a_kafka_that_is_away_is_one_finding(source: CapturedSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.topics._TIMEOUT_S", 1.0)
    found = preflight.check(source.source, source.pipelines, KafkaSettings(bootstrap_servers="127.0.0.1:9"))
    assert [one.check for one in found if not one.ok] == ["kafka"]


def test_a_publication_that_may_not_be_created_is_an_error_with_the_statement(stack: Stack) -> None:
    source = CapturedSource(stack.addresses())
    source.execute("create role $S_role login replication")
    try:
        dsn = make_conninfo(source.source.dsn.get_secret_value(), user=f"{source.name}_role")
        poor = source.source.model_copy(update={"dsn": SecretStr(dsn)})
        source.pipeline("$S_t", "{title}")
        with pytest.raises(ConnectorError, match=r"run as the owner of the tables: CREATE PUBLICATION"):
            prepare(poor, source.pipelines, source.kafka)
    finally:
        source.execute("drop role $S_role")
        source.stop()


# ---- what only a server of its own can show


def on(dsn: str) -> tuple[PostgresSource, list[Pipeline]]:
    source = PostgresSource(name="own", dsn=SecretStr(dsn))
    return source, [Pipeline(name="own", source="own", table="public.t", text="{title}")]


def database_findings(dsn: str, stack: Stack) -> dict[str, Finding]:
    source, pipelines = on(dsn)
    kafka = KafkaSettings(bootstrap_servers=stack.addresses().kafka_bootstrap_servers)
    return {one.check: one for one in preflight.check(source, pipelines, kafka) if not one.ok}


def test_the_servers_own_limits_are_found(stack: Stack) -> None:
    with postgres_cluster(wal_level="replica", max_replication_slots="1", max_wal_senders="0") as cluster:
        with cluster.connect() as connection:
            connection.execute("select pg_create_physical_replication_slot('other')")
        found = database_findings(cluster.dsn, stack)
        assert found["wal_level"].remedy == "ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL"
        assert "all 1 replication slots are taken" in found["slot"].message
        assert "max_replication_slots = 6" in found["slot"].remedy
        assert "all 0 WAL senders are busy" in found["wal_senders"].message
        cluster.stop()
        cluster.start(max_replication_slots="6", max_wal_senders="5")
        assert not {"wal_level", "slot", "wal_senders"} & database_findings(cluster.dsn, stack).keys()


def test_a_slot_whose_log_was_removed_is_found(stack: Stack) -> None:
    with postgres_cluster(max_slot_wal_keep_size="1MB", min_wal_size="32MB", max_wal_size="32MB") as cluster:
        with cluster.connect() as connection:
            connection.execute("select pg_create_logical_replication_slot('livevec_own', 'pgoutput')")
            connection.execute("create table filler (t text)")
            for _ in range(4):
                connection.execute(
                    "insert into filler select repeat('x', 1000) from generate_series(1, 20000)"
                )
                connection.execute("select pg_switch_wal()")
                connection.execute("checkpoint")
        assert "raise the source's `era`" in database_findings(cluster.dsn, stack)["slot"].remedy


def test_a_standby_is_refused(stack: Stack) -> None:
    with postgres_cluster() as primary, postgres_cluster() as standby:
        standby.stop()
        standby.follow(primary)
        standby.start()
        found = database_findings(standby.dsn, stack)
        assert [name for name in found if name != "topic"] == ["primary"]
        assert "target_session_attrs=read-write" in found["primary"].remedy


def _follow(source: CapturedSource, finding: Finding) -> None:
    """`ALTER PUBLICATION p DROP TABLE t, then ADD TABLE t`."""
    first, second = finding.remedy.split(", then ")
    source.execute(first)
    source.execute(f"{first.split(' DROP TABLE ')[0]} {second}")

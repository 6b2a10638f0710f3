"""Where changes come from."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from daemon.settings.base import LOCAL, Name, PositiveFloat, PositiveInt, Settings

ERA_HEADER = "livevec.era"
"""Header by which the connector tells the era of each record."""


class PostgresSource(Settings):
    """A PostgreSQL database, captured by Debezium."""

    kind: Literal["postgres"] = "postgres"
    name: Name = Field(description="Name of the source; also Debezium's `topic.prefix` and connector name.")
    dsn: SecretStr = Field(
        SecretStr(LOCAL), description="libpq connection string of the primary, or `local`."
    )
    capture_dsn: SecretStr | None = Field(
        None, description="The same database as Kafka Connect reaches it, where that differs from `dsn`."
    )
    slot: str = Field("", description="Replication slot; empty: `livevec_<name>`.")
    publication: str = Field("", description="Publication; empty: `livevec_<name>`.")
    create_publication: bool = Field(True, description="Let `connector apply` create and extend it.")
    create_topics: bool = Field(True, description="Let `connector apply` create the topics.")
    topic_partitions: PositiveInt = Field(1, description="Partitions of a topic that livevec creates.")
    topic_replication_factor: PositiveInt = Field(1, description="Replicas of a topic that livevec creates.")
    snapshot_mode: Literal["initial", "no_data"] = Field(
        "initial", description="`initial`: Debezium reads the rows there are; `no_data`: only changes."
    )
    era: Annotated[int, Field(ge=0)] = Field(0, description="Raised by one when the source lost history.")
    heartbeat_interval_ms: PositiveInt = Field(1000, description="Debezium's heartbeat; moves freshness.")
    reread_rows_max: PositiveInt = Field(200, description="Rows fetched from the source in one re-read.")
    timeout_s: PositiveFloat = Field(10.0, description="Longest wait for one query.")
    connector: dict[str, str] = Field({}, description="More Debezium settings, passed as they are.")

    @property
    def message_topic(self) -> str:
        """Where Debezium puts logical messages: it names the topic after the source."""
        return f"{self.name}.message"

    @property
    def slot_name(self) -> str:
        return self.slot or f"livevec_{self.name}".replace("-", "_")

    @property
    def publication_name(self) -> str:
        return self.publication or f"livevec_{self.name}".replace("-", "_")


class EventSource(Settings):
    """Topics of plain JSON records keyed by id, written by applications without a database."""

    kind: Literal["events"] = "events"
    name: Name = Field(description="Name of the source.")


SOURCE_KINDS = ("postgres", "events")
Source = Annotated[PostgresSource | EventSource, Field(discriminator="kind")]

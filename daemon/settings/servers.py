"""The servers that livevec uses."""

from pydantic import Field, SecretStr

from daemon.settings.base import LOCAL, PositiveFloat, PositiveInt, Settings


class KafkaSettings(Settings):
    bootstrap_servers: str = Field(LOCAL, description="`host:port,host:port`, or `local`.")
    group_id: str = Field("livevec", description="Consumer group; the replicas of one daemon share it.")
    client: dict[str, str | int | float | bool] = Field(
        {}, description="More librdkafka settings (`security.protocol`, `sasl.*`, ...), passed as they are."
    )
    session_timeout_ms: PositiveInt = Field(10_000, description="Silence after which the group moves on.")
    fetch_wait_max_ms: PositiveInt = Field(5, description="How long the broker may hold back a fetch.")
    commit_interval_ms: PositiveInt = Field(200, description="Time between two commits of offsets.")
    dead_letter_topic_suffix: str = Field(
        ".livevec.dead_letters", description="Appended to the pipeline's name for its dead-letter topic."
    )

    def dead_letter_topic(self, pipeline: str) -> str:
        """The dead-letter topic of the pipeline of that name."""
        return pipeline + self.dead_letter_topic_suffix


class ConnectSettings(Settings):
    url: str = Field(LOCAL, description="Kafka Connect's REST address, or `local`.")
    timeout_s: PositiveFloat = Field(10.0, description="Longest wait for one REST call.")


class RedisSettings(Settings):
    url: SecretStr = Field(SecretStr(LOCAL), description="`redis://[user:password@]host:port/0`, or `local`.")
    cluster: bool = Field(False, description="Speak to a Redis Cluster; `url` names any one node.")
    timeout_s: PositiveFloat = Field(5.0, description="Longest wait for one reply.")
    connections_max: PositiveInt = Field(16, description="Connections of this process.")
    pipeline_commands_max: PositiveInt = Field(
        16, description="Writes sent in one pipeline; larger ones delay concurrent searches."
    )
    delete_marker_ttl_s: PositiveInt = Field(
        7 * 24 * 3600, description="How long a deleted document's version is remembered."
    )

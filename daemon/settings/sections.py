"""The base of all settings, and the sections of daemon.toml for the servers and for the running daemon."""

import difflib
import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

LOCAL = "local"
"""Stands for the address of the server in the embedded stack."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Column = Annotated[str, Field(min_length=1, max_length=63)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """The base of all sections: frozen, without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


def nearest(name: str, known: list[str]) -> str:
    """Return a hint that names the known name nearest to `name`, or nothing where none is near."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


class KafkaSettings(Settings):
    bootstrap_servers: str = LOCAL
    """`host:port,host:port`, or `local`."""
    group_id: str = "livevec"
    """Consumer group; the replicas of one daemon share it."""
    client: dict[str, str | int | float | bool] = Field({})
    """More librdkafka settings (`security.protocol`, `sasl.*`, ...), passed as they are."""
    session_timeout_ms: PositiveInt = 10_000
    """Silence after which the group gives this member's partitions to others."""
    fetch_wait_max_ms: PositiveInt = 5
    """How long the broker may wait for more data before it answers a fetch."""
    commit_interval_ms: PositiveInt = 200
    """Time between two commits of offsets."""
    dead_letter_topic_suffix: str = ".livevec.dead_letters"
    """Appended to the pipeline's name for its dead-letter topic."""

    def dead_letter_topic(self, pipeline: str) -> str:
        """Return the dead-letter topic of the pipeline of that name."""
        return pipeline + self.dead_letter_topic_suffix


class ConnectSettings(Settings):
    url: str = LOCAL
    """Kafka Connect's REST address, or `local`."""
    timeout_s: PositiveFloat = 10.0
    """Longest wait for one REST call."""


class RedisSettings(Settings):
    url: SecretStr = SecretStr(LOCAL)
    """`redis://[user:password@]host:port/0`, or `local`."""
    cluster: bool = False
    """The server is a Redis Cluster; `url` names any of its nodes."""
    timeout_s: PositiveFloat = 5.0
    """Longest wait for one reply."""
    connections_max: PositiveInt = 16
    """Most connections of one process."""
    pipeline_commands_max: PositiveInt = 16
    """Most writes sent in one round trip; more would delay concurrent searches."""
    delete_marker_ttl_s: PositiveInt = 7 * 24 * 3600
    """How long a deleted document's version is remembered."""


class EmbeddingSettings(Settings):
    provider: Literal["triton", "openai"] = "triton"
    """The kind of server that embeds."""
    url: str = LOCAL
    """Triton's gRPC `host:port`, or `local`; for openai the base URL."""
    model: str = "text_embedder"
    """Name of the model on that server."""
    api_key: SecretStr = SecretStr("")
    """openai: the bearer token; empty: no token is sent."""
    dimension: PositiveInt = 384
    """Length of a vector; a model of another dimension is refused."""
    timeout_s: PositiveFloat = 10.0
    """Longest wait for one request."""
    requests_max: PositiveInt = 4
    """Most requests in flight at once."""
    batch_texts_max: PositiveInt = 500
    """Most texts in one request."""
    request_tokens_max: PositiveInt = 100_000
    """openai: most tokens in one request; a larger batch is sent as several requests."""
    text_tokens_max: Annotated[int, Field(ge=0)] = 8_191
    """openai: most tokens of a text; a longer one is cut, as Triton cuts it by itself; 0: no limit."""
    tokenizer: str = ""
    """openai: path of the model's tokenizer.json, for exact counts and cuts; empty: 2 bytes count as a token, which
    cuts prose at half of the model's limit."""
    request_dimension: bool = False
    """openai: ask the model to shorten its vectors to `dimension`, which not every model can."""
    document_prompt: str = ""
    """openai: prompt before each stored text, such as `passage: ` for E5."""
    query_prompt: str = ""
    """openai: prompt before each search text, such as `query: ` for E5."""

    @model_validator(mode="after")
    def _provider(self) -> Self:
        if self.provider == "triton":
            if self.document_prompt or self.query_prompt:
                raise ValueError(
                    "document_prompt and query_prompt are for provider openai; a model on Triton has its own prompts"
                )
            return self
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", self.url):
            raise ValueError(
                "provider openai needs `url`: the API's base, such as https://api.openai.com/v1, without a key in it"
            )
        if "model" not in self.model_fields_set or not self.model.strip():
            raise ValueError(
                "provider openai needs `model`: its name on the server, such as text-embedding-3-small"
            )
        if not re.fullmatch(r"[!-~]*", self.api_key.get_secret_value()):
            raise ValueError("api_key contains a space, a line break or another character that no key has")
        return self


class BatchingSettings(Settings):
    policy: Literal["deadline", "aimd", "fixed"] = "deadline"
    """The policy that decides when a batch starts and how large it is."""
    target_ms: PositiveFloat = 100.0
    """Target from commit to searchable; each change's deadline."""
    linger_ms_max: Annotated[float, Field(ge=0)] = 5.0
    """`fixed` and `aimd`: longest wait for a full batch."""
    batch_max: PositiveInt = 500
    """Most changes in one batch."""
    batch_tokens_max: PositiveInt = 16_384
    """Most estimated tokens in one batch."""
    fixed_size: PositiveInt = 32
    """`fixed`: changes in one batch."""
    in_flight_max: PositiveInt = 4
    """Most batches that are embedded and written at once."""
    queue_changes_max: PositiveInt = 20_000
    """Most changes that wait; then the partitions are paused."""
    queue_bytes_max: PositiveInt = 48 * 1024 * 1024
    """Most memory of the changes that wait, in bytes; then the partitions are paused."""


class SlowLaneSettings(Settings):
    request_ms_max: PositiveFloat = 40.0
    """Longest request to the embedder while there are no live changes."""
    requests_max: PositiveInt = 2
    """Most requests of one worker at once while there are no live changes."""
    live_request_ms_max: PositiveFloat = 20.0
    """Longest request while there are live changes, one at a time: how long one may have to wait."""
    parts_in_flight_max: PositiveInt = 4
    """Most requests with their writes in progress before more rows are read."""


class RetrySettings(Settings):
    backoff_ms_min: PositiveInt = 50
    """First wait after a server failed."""
    backoff_ms_max: PositiveInt = 5_000
    """Longest wait between two tries."""
    stuck_version_s_max: PositiveFloat = 300.0
    """How long an index version that readers do not see may be stuck (its model is away, for example) before it is
    given up: it holds up the offsets of all versions."""


class TelemetrySettings(Settings):
    address: str = LOCAL
    """`host:port` of /metrics, /healthz, /readyz; `local`: the embedded stack's, or 127.0.0.1:9464."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto`: `console` on a terminal, else `json`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""


class LocalSettings(Settings):
    ports: dict[str, int] = Field({})
    """Fixed ports of the embedded stack by server name; other servers get free ports."""

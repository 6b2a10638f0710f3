"""The settings: what daemon.toml may say, as frozen models.

Each field's description is the reference documentation: docs/configuration.md is generated from them
(`livevec config docs`). daemon/config.py reads the file.
"""

import base64
import difflib
import re
import string
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from daemon.errors import ConfigError

LOCAL = "local"
ERA_HEADER = "livevec.era"
"""Header by which the connector tells the era of each record."""
RESERVED_FIELDS = frozenset({"id", "chunk", "text", "embedding"})

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Column = Annotated[str, Field(min_length=1, max_length=63)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


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


class EmbeddingSettings(Settings):
    provider: Literal["triton", "openai"] = Field("triton", description="Where embeddings come from.")
    url: str = Field(LOCAL, description="Triton's gRPC `host:port`, or `local`; for openai the base URL.")
    model: str = Field("text_embedder", description="The model's name there.")
    api_key: SecretStr = Field(SecretStr(""), description="openai: the bearer token; empty: none is sent.")
    dimension: PositiveInt = Field(384, description="Length of a vector; a model that differs is refused.")
    timeout_s: PositiveFloat = Field(10.0, description="Longest wait for one request.")
    requests_max: PositiveInt = Field(4, description="Requests in flight at once.")
    batch_texts_max: PositiveInt = Field(500, description="Texts in one request.")
    request_tokens_max: PositiveInt = Field(
        100_000, description="openai: tokens in one request; more are sent as several."
    )
    text_tokens_max: Annotated[int, Field(ge=0)] = Field(
        8_191,
        description="openai: a longer text is cut, as a model on Triton does itself; 0: it is sent whole.",
    )
    tokenizer: str = Field(
        "",
        description="openai: path of the model's tokenizer.json, to count and cut exactly; "
        "empty: 2 bytes count as a token, which cuts prose at half of what the model takes.",
    )
    request_dimension: bool = Field(
        False, description="openai: ask the model to shorten its vectors to `dimension`; not every model can."
    )
    document_prompt: str = Field("", description="openai: put before each text, as `passage: ` for E5.")
    query_prompt: str = Field("", description="openai: put before what is searched for, as `query: ` for E5.")

    @model_validator(mode="after")
    def _provider(self) -> Self:
        if self.provider == "triton":
            if self.document_prompt or self.query_prompt:
                raise ValueError(
                    "document_prompt and query_prompt are for openai; Triton's model has its own"
                )
            return self
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", self.url):
            raise ValueError(
                "provider openai needs `url`: the base of the API, as https://api.openai.com/v1, without a key in it"
            )
        if "model" not in self.model_fields_set or not self.model.strip():
            raise ValueError("provider openai needs `model`: its name there, as text-embedding-3-small")
        if not re.fullmatch(r"[!-~]*", self.api_key.get_secret_value()):
            raise ValueError("api_key has a space, a line break or another character that no key has")
        return self


class BatchingSettings(Settings):
    policy: Literal["deadline", "aimd", "fixed"] = Field("deadline", description="How batches are cut.")
    target_ms: PositiveFloat = Field(100.0, description="Commit to searchable: each change's deadline.")
    linger_ms_max: Annotated[float, Field(ge=0)] = Field(
        5.0, description="`fixed` and `aimd`: longest wait for a batch to fill."
    )
    batch_max: PositiveInt = Field(500, description="Most changes in one batch.")
    batch_tokens_max: PositiveInt = Field(16_384, description="Most estimated tokens in one batch.")
    fixed_size: PositiveInt = Field(32, description="`fixed`: changes in one batch.")
    in_flight_max: PositiveInt = Field(4, description="Batches between closing and acknowledgement.")
    queue_changes_max: PositiveInt = Field(20_000, description="Changes waiting; more pauses the partitions.")
    queue_bytes_max: PositiveInt = Field(
        48 * 1024 * 1024, description="Memory of what waits, in bytes; more pauses the partitions."
    )


class SlowLaneSettings(Settings):
    request_ms_max: PositiveFloat = Field(
        20.0, description="Longest request to the embedder: what a live change may have to wait for one."
    )
    requests_max: PositiveInt = Field(2, description="Requests at the embedder at once, of one worker.")
    parts_in_flight_max: PositiveInt = Field(
        4, description="Requests and the writes that follow them, before the next rows are taken."
    )


class RetrySettings(Settings):
    backoff_ms_min: PositiveInt = Field(50, description="First wait after a part failed.")
    backoff_ms_max: PositiveInt = Field(5_000, description="Longest wait between two tries.")


class RetryDeadLettersSettings(Settings):
    """The `retry` workflow of each pipeline, in `livevec worker`."""

    pause_s_min: PositiveFloat = Field(
        30.0,
        description="Before a dead letter is tried again; doubled by each try, up to half of it by chance.",
    )
    pause_s_max: PositiveFloat = Field(3600.0, description="Longest pause between two tries.")
    attempts_max: PositiveInt = Field(
        12, description="Refusals after which it is given up; a part that is away is none."
    )
    give_up_after_s: PositiveFloat = Field(
        3 * 24 * 3600.0,
        description="Age at which it is given up. What is given up is listed until it is dropped.",
    )
    documents_max: PositiveInt = Field(2_000, description="Held of one pipeline; the rest waits in Kafka.")
    wait_for_change: tuple[str, ...] = Field(
        (
            *("oversized_text", "not_numeric", "missing_column", "no_key"),
            *("malformed_envelope", "malformed_json", "malformed_key", "malformed_value"),
        ),
        description="Reasons that time does not heal: such a row waits for a newer version of itself, or for "
        "`livevec retry`.",
    )


class ReindexSettings(Settings):
    """The `reindex` workflow, in `livevec worker`."""

    recall_min: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95,
        description="Least recall@10 of the new index against exact search; less is never approved by --auto.",
    )
    queries: Annotated[int, Field(ge=1, le=1_000)] = Field(
        100, description="Sampled rows whose texts are searched for to measure recall and to compare answers."
    )
    exact_vectors_max: PositiveInt = Field(
        1_000_000,
        description="Vectors of the new index that exact search reads, in batches; more are left out.",
    )
    grace_s: Annotated[float, Field(ge=0)] = Field(
        86_400.0, description="How long the replaced index is kept, written to, and can be rolled back to."
    )
    last_readers_s: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="Before an index that was searched until now is dropped: for who looked it up just before.",
    )


class MetadataField(Settings):
    """One column carried beside the vector for filtering."""

    column: Column = Field(description="Column of the table.")
    type: Literal["tag", "numeric", "text"] = Field("tag", description="Its search type in Redis.")
    name: Column | None = Field(None, description="Name in Redis, where it differs from the column.")

    @property
    def field(self) -> str:
        return self.name or self.column


class IndexSettings(Settings):
    m: Annotated[int, Field(ge=2, le=512)] = Field(16, description="HNSW: edges of a node.")
    ef_construction: Annotated[int, Field(ge=1, le=4096)] = Field(
        128, description="HNSW: candidates when inserting."
    )
    ef_runtime: Annotated[int, Field(ge=1, le=4096)] = Field(
        50, description="HNSW: candidates when searching."
    )
    metric: Literal["cosine", "l2", "ip"] = Field("cosine", description="Distance.")
    type: Literal["FLOAT32", "FLOAT16", "BFLOAT16"] = Field(
        "FLOAT32", description="Number format of a vector."
    )


class ChunkingSettings(Settings):
    tokens_max: Annotated[int, Field(ge=0)] = Field(
        0, description="Longest chunk in tokens; 0: one chunk, cut by the model."
    )
    tokens_overlap: Annotated[int, Field(ge=0)] = Field(0, description="Tokens shared by neighbours.")
    tokenizer: str = Field("", description="Path of the model's tokenizer.json; needed when chunking.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tokens_max and self.tokens_overlap * 2 > self.tokens_max:
            raise ValueError("tokens_overlap may be at most half of tokens_max")
        if self.tokens_max and not self.tokenizer:
            raise ValueError("tokens_max needs `tokenizer`: the path of the model's tokenizer.json")
        return self


class Pipeline(Settings):
    """One table (or event topic) mirrored into one vector index."""

    name: Name = Field(description="Name of the pipeline, of its Redis alias and of its metrics' label.")
    source: Name = Field(description="Name of the source it reads.")
    table: str = Field("", description="`schema.table` of a PostgreSQL source.")
    topic: str = Field("", description="Topic; empty: `<source>.<table>` as Debezium names it.")
    text: str = Field(description="Text to embed, a template over columns: `{title}. {body}`.")
    text_bytes_max: PositiveInt = Field(
        1_048_576, description="A longer text is dead-lettered: raise this or enable chunking."
    )
    metadata: tuple[MetadataField, ...] = Field((), description="Columns stored for filtering.")
    index: IndexSettings = Field(IndexSettings(), description="The Redis index.")
    chunking: ChunkingSettings = Field(ChunkingSettings(), description="Cutting long texts.")
    keep_bytes_in_dead_letters: bool = Field(
        False, description="Put the original bytes into dead letters; off: only coordinates."
    )
    reconcile_every_s: Annotated[float, Field(ge=0)] = Field(
        86_400.0,
        description="How often table and index are compared, by a schedule that `livevec worker` keeps; 0: never.",
    )
    reconcile_repair: bool = Field(
        True, description="Let the scheduled reconcile mend what differs; off: only count and tell."
    )

    @property
    def topic_name(self) -> str:
        """The topic that it reads: as set, else as Debezium names the table's."""
        return self.topic or f"{self.source}.{self.table}"

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns that the text template names, in order, each once."""
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(self.text) if name))

    @field_validator("text")
    @classmethod
    def _template(cls, text: str) -> str:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"not a template ({error}); write a literal brace as {{{{ or }}}}") from error
        for _, name, spec, conversion in parts:
            if name is not None and (not name or spec or conversion or re.search(r"[.\[\]]", name)):
                raise ValueError(f"{{{name}}}: only plain column names are allowed, as in {{title}}")
        if not any(name for _, name, _, _ in parts):
            raise ValueError("names no column; write at least one, as in {title}")
        return text

    @model_validator(mode="after")
    def _fields(self) -> Self:
        names = [field.field for field in self.metadata]
        for name in names:
            if name in RESERVED_FIELDS:
                raise ValueError(
                    f"metadata field {name!r} is taken by livevec itself; give it another `name`"
                )
            if names.count(name) > 1:
                raise ValueError(f"metadata field {name!r} appears twice; give one another `name`")
        return self


class TelemetrySettings(Settings):
    address: str = Field(LOCAL, description="`host:port` of /metrics, /healthz, /readyz; or `local`.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: console on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")


class WorkerSettings(Settings):
    """`livevec worker`."""

    activities_max: PositiveInt = Field(8, description="Activities of one worker at once.")
    workflow_tasks_max: Annotated[int, Field(ge=2)] = Field(
        16, description="Decisions of workflows that one worker makes at once."
    )
    metrics_address: str = Field(
        LOCAL, description="`host:port` of the worker's own /metrics, /healthz, /readyz; or `local`."
    )
    sdk_metrics_address: str = Field(
        LOCAL, description="`host:port` of the /metrics of Temporal's SDK in the worker; or `local`."
    )
    deployment: str = Field(
        "livevec",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="Name of the worker deployment; empty: no worker versioning.",
    )
    build_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.+-]*$",
        description="Build id; empty: the package's version and a hash of its workflows.",
    )
    become_current: bool = Field(
        True, description="A worker that starts makes its build the one that workflows run on."
    )


class TemporalSettings(Settings):
    address: str = Field(LOCAL, description="`host:port` of the frontend, or `local`.")
    namespace: str = Field("livevec", description="Namespace.")
    task_queue: str = Field("livevec", description="Task queue of `livevec worker`.")
    ui_url: str = Field(LOCAL, description="Address of Temporal's UI, for links; or `local`.")
    tls: bool = Field(False, description="Speak TLS, as Temporal Cloud asks for.")
    api_key: SecretStr = Field(SecretStr(""), description="API key of the namespace; needs `tls`.")
    codec_key: SecretStr = Field(
        SecretStr(""),
        description="Key that encrypts what workflows are given and answer: 32 bytes in base64; empty: plain.",
    )
    codec_keys_old: tuple[SecretStr, ...] = Field(
        (), description="Former keys: they still decrypt, and encrypt nothing."
    )
    worker: WorkerSettings = WorkerSettings()

    @field_validator("codec_key", "codec_keys_old")
    @classmethod
    def _keys(cls, given: SecretStr | tuple[SecretStr, ...]) -> SecretStr | tuple[SecretStr, ...]:
        for key in given if isinstance(given, tuple) else (given,):
            text = key.get_secret_value()
            try:
                size_bytes = len(base64.b64decode(text, validate=True))
            except ValueError:
                size_bytes = -1
            if text and size_bytes != 32:
                raise ValueError("not 32 bytes in base64; `openssl rand -base64 32` makes a key")
        return given


class LocalSettings(Settings):
    ports: dict[str, int] = Field(
        {}, description="Fixed ports of the embedded stack by server name; free ones are chosen otherwise."
    )


class Config(Settings):
    """The whole of daemon.toml."""

    kafka: KafkaSettings = KafkaSettings()
    connect: ConnectSettings = ConnectSettings()
    redis: RedisSettings = RedisSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    batching: BatchingSettings = BatchingSettings()
    slow_lane: SlowLaneSettings = SlowLaneSettings()
    retry: RetrySettings = RetrySettings()
    retry_dead_letters: RetryDeadLettersSettings = RetryDeadLettersSettings()
    reindex: ReindexSettings = ReindexSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    temporal: TemporalSettings = TemporalSettings()
    local: LocalSettings = LocalSettings()
    shutdown_timeout_s: PositiveFloat = Field(20.0, description="Longest drain after SIGTERM.")
    sources: tuple[Source, ...] = Field((), description="Where changes come from.")
    pipelines: tuple[Pipeline, ...] = Field((), description="What is mirrored.")

    @model_validator(mode="after")
    def _references(self) -> Self:
        for kind, names in (
            ("source", [s.name for s in self.sources]),
            ("pipeline", [p.name for p in self.pipelines]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {kind}s are named {name!r}; names are unique")
        for pipeline in self.pipelines:
            known = [source.name for source in self.sources]
            if pipeline.source not in known:
                raise ValueError(
                    f"pipeline {pipeline.name!r} reads source {pipeline.source!r}, which is not defined"
                    f"{nearest(pipeline.source, known)}"
                )
            if isinstance(self.source(pipeline.source), PostgresSource):
                if not re.fullmatch(r"[^.]+\.[^.]+", pipeline.table):
                    raise ValueError(f"pipeline {pipeline.name!r}: table must be `schema.table`")
            elif not pipeline.topic:
                raise ValueError(f"pipeline {pipeline.name!r}: an events source needs `topic`")
        return self

    def source(self, name: str) -> PostgresSource | EventSource:
        return next(source for source in self.sources if source.name == name)

    def pipeline(self, name: str) -> Pipeline:
        """The pipeline of that name.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        for pipeline in self.pipelines:
            if pipeline.name == name:
                return pipeline
        names = [pipeline.name for pipeline in self.pipelines]
        raise ConfigError(
            f"no pipeline is named {name!r}{nearest(name, names)}; defined: {', '.join(names) or 'none'}"
        )

    def topic(self, pipeline: Pipeline) -> str:
        """The topic a pipeline reads."""
        return pipeline.topic_name


def nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""

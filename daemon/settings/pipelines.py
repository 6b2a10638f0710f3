"""The sources of changes, and the pipelines: what is mirrored."""

import re
import string
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from daemon.settings.sections import LOCAL, Column, Name, PositiveFloat, PositiveInt, Settings

ERA_HEADER = "livevec.era"
"""The header in which the connector puts the era of each record."""


class PostgresSource(Settings):
    """A PostgreSQL database, captured by Debezium."""

    kind: Literal["postgres"] = "postgres"
    name: Name
    """Name of the source; also Debezium's `topic.prefix` and connector name."""
    dsn: SecretStr = SecretStr(LOCAL)
    """libpq connection string of the primary, or `local`."""
    capture_dsn: SecretStr | None = None
    """Connection string of the same database for Kafka Connect, where that differs from `dsn`."""
    slot: str = ""
    """Replication slot; empty: `livevec_<name>`."""
    publication: str = ""
    """Publication; empty: `livevec_<name>`."""
    create_publication: bool = True
    """Let `connector apply` create and extend the publication."""
    create_topics: bool = True
    """Let `connector apply` create the topics."""
    topic_partitions: PositiveInt = 1
    """Partitions of a topic that livevec creates."""
    topic_replication_factor: PositiveInt = 1
    """Replicas of a topic that livevec creates."""
    snapshot_mode: Literal["initial", "no_data"] = "initial"
    """`initial`: Debezium reads the existing rows first; `no_data`: only changes."""
    era: Annotated[int, Field(ge=0)] = 0
    """To be raised by one when the source has lost history, such as by a restore."""
    heartbeat_interval_ms: PositiveInt = 1000
    """Interval of Debezium's heartbeat, which keeps the freshness metric moving."""
    reread_rows_max: PositiveInt = 200
    """Most rows that are read again in one query."""
    timeout_s: PositiveFloat = 10.0
    """Longest wait for one query."""
    connector: dict[str, str] = Field({})
    """More Debezium settings, passed on unchanged."""

    @property
    def message_topic(self) -> str:
        """Return the topic of Debezium's logical messages, which it names after the source."""
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
    name: Name
    """Name of the source."""


SOURCE_KINDS = ("postgres", "events")
Source = Annotated[PostgresSource | EventSource, Field(discriminator="kind")]


RESERVED_FIELDS = frozenset({"id", "chunk", "text", "embedding"})


class MetadataField(Settings):
    """One column that is stored beside the vector for filtering."""

    column: Column
    """Column of the table."""
    type: Literal["tag", "numeric", "text"] = "tag"
    """Type of the field in the search index."""
    name: Column | None = None
    """Name of the field in Redis, where it differs from the column."""

    @property
    def field(self) -> str:
        return self.name or self.column


class IndexSettings(Settings):
    m: Annotated[int, Field(ge=2, le=512)] = 16
    """HNSW: most edges of a node."""
    ef_construction: Annotated[int, Field(ge=1, le=4096)] = 128
    """HNSW: candidates when inserting."""
    ef_runtime: Annotated[int, Field(ge=1, le=4096)] = 50
    """HNSW: candidates when searching."""
    metric: Literal["cosine", "l2", "ip"] = "cosine"
    """Distance between vectors."""
    type: Literal["FLOAT32", "FLOAT16", "BFLOAT16"] = "FLOAT32"
    """Number format of a vector."""


class ChunkingSettings(Settings):
    tokens_max: Annotated[int, Field(ge=0)] = 0
    """Most tokens of a chunk; 0: the text is one chunk, which the model cuts."""
    tokens_overlap: Annotated[int, Field(ge=0)] = 0
    """Tokens that neighbouring chunks share."""
    tokenizer: str = ""
    """Path of the model's tokenizer.json; required with `tokens_max`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tokens_max and self.tokens_overlap * 2 > self.tokens_max:
            raise ValueError("tokens_overlap may be at most half of tokens_max")
        if self.tokens_max and not self.tokenizer:
            raise ValueError("tokens_max needs `tokenizer`: the path of the model's tokenizer.json")
        return self


class Pipeline(Settings):
    """One table (or event topic) mirrored into one vector index."""

    name: Name
    """Name of the pipeline, of its alias in Redis, and of the label in metrics."""
    source: Name
    """Name of the source that it reads."""
    table: str = ""
    """`schema.table` of a PostgreSQL source."""
    topic: str = ""
    """Topic that it reads; empty: `<source>.<table>`, as Debezium names it."""
    text: str
    """Template of the text to embed, with column names: `{title}. {body}`."""
    text_bytes_max: PositiveInt = 1_048_576
    """Most bytes of a text; a row with a longer one becomes a dead letter."""
    metadata: tuple[MetadataField, ...] = ()
    """Columns that are stored for filtering."""
    index: IndexSettings = IndexSettings()
    """The Redis index."""
    chunking: ChunkingSettings = ChunkingSettings()
    """How long texts are cut into chunks."""
    keep_bytes_in_dead_letters: bool = False
    """Put the original record into the dead letter; off: only its topic, partition and offset."""
    reconcile_every_s: Annotated[float, Field(ge=0)] = 86_400.0
    """Interval at which `livevec worker` compares the table with its index; 0: never."""
    reconcile_repair: bool = True
    """Let the scheduled reconcile repair the differences; off: only count and report them."""

    @property
    def topic_name(self) -> str:
        """Return the topic that it reads: the one that is set, else the table's, as Debezium names it."""
        return self.topic or f"{self.source}.{self.table}"

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that the text template names, in order, each once."""
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
            raise ValueError("the template names no column; write at least one, as in {title}")
        return text

    @model_validator(mode="after")
    def _fields(self) -> Self:
        names = [field.field for field in self.metadata]
        for name in names:
            if name in RESERVED_FIELDS:
                raise ValueError(
                    f"metadata field {name!r} is a name that livevec uses itself; give it another `name`"
                )
            if names.count(name) > 1:
                raise ValueError(f"metadata field {name!r} appears twice; give one another `name`")
        return self

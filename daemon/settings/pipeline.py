"""What is mirrored."""

import re
import string
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from daemon.settings.base import Column, Name, PositiveInt, Settings

RESERVED_FIELDS = frozenset({"id", "chunk", "text", "embedding"})


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

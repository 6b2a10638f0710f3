"""Index versions: FT.CREATE, the alias that readers use, and the settings that each version was made with."""

from dataclasses import dataclass
from typing import Any, cast

import orjson
import redis.exceptions as redis_errors
from redis.commands.search.field import Field, NumericField, TagField, TextField, VectorField
from redis.commands.search.index_definition import IndexDefinition, IndexType

from daemon.core.document import TAG_SEPARATOR
from daemon.embedding.embedder import EmbeddingSpace
from daemon.errors import ConfigError
from daemon.index.connection import Client, translated
from daemon.index.layout import Layout, versions_key
from daemon.settings import Pipeline

FIRST_VERSION = 1


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """What one index version was made with; another setting needs another version.

    Attributes:
        fingerprint: identity of the embedding space.
        text: the template.
        chunking: tokens_max and tokens_overlap.
    """

    number: int
    fingerprint: str
    dimension: int
    text: str
    chunking: tuple[int, int]
    metadata: tuple[tuple[str, str, str], ...]
    m: int
    ef_construction: int
    metric: str
    type: str

    def space(self) -> str:
        """What a content hash depends on besides the text."""
        return f"{self.fingerprint}|{self.chunking}"


def wanted(pipeline: Pipeline, space: EmbeddingSpace, number: int) -> IndexVersion:
    """The version that the configuration asks for."""
    return IndexVersion(
        number=number,
        fingerprint=space.fingerprint,
        dimension=space.dimension,
        text=pipeline.text,
        chunking=(pipeline.chunking.tokens_max, pipeline.chunking.tokens_overlap),
        metadata=tuple((field.column, field.field, field.type) for field in pipeline.metadata),
        m=pipeline.index.m,
        ef_construction=pipeline.index.ef_construction,
        metric=pipeline.index.metric,
        type=pipeline.index.type,
    )


async def ensure(client: Client, pipeline: Pipeline, space: EmbeddingSpace) -> Layout:
    """Make sure that the pipeline's index version, index and alias are there; answers where its keys are.

    Raises:
        ConfigError: the stored version was made with other settings; names them.
        FailureClass: Redis failed.
    """
    key = versions_key(pipeline.name)
    version = wanted(pipeline, space, FIRST_VERSION)
    record = orjson.dumps(version)
    with translated():
        await client.hsetnx(key, str(version.number), record)
        stored = orjson.loads(await client.hget(key, str(version.number)))  # type: ignore[arg-type]
    differing = [name for name, value in orjson.loads(record).items() if stored.get(name) != value]
    if differing:
        raise ConfigError(
            f"pipeline {pipeline.name!r}: index version {version.number} was made with another "
            f"{', '.join(differing)}; set it back in daemon.toml, or give the pipeline a new name"
        )
    layout = Layout(pipeline.name, version.number)
    if not await exists(client, layout.index):
        await create(client, layout, version)
    await point_alias(client, layout)
    return layout


async def exists(client: Client, index: str) -> bool:
    """Whether an index or alias of that name is there."""
    try:
        await cast(Any, client.ft(index)).info()
    except redis_errors.ResponseError as error:
        text = str(error).lower()
        if "no such index" in text or "unknown index" in text or "not found" in text:
            return False
        with translated():
            raise
    except redis_errors.RedisError:
        with translated():
            raise
    return True


async def create(client: Client, layout: Layout, version: IndexVersion) -> None:
    """FT.CREATE over the documents' prefix; documents that are there already are indexed in the background."""
    with translated():
        await cast(Any, client.ft(layout.index)).create_index(
            _fields(version),
            definition=cast(Any, IndexDefinition)(
                prefix=[layout.documents_prefix], index_type=IndexType.HASH
            ),
        )


async def point_alias(client: Client, layout: Layout) -> None:
    """Let the alias name this version; readers see the change as one step."""
    with translated():
        await cast(Any, client.ft(layout.index)).aliasupdate(layout.alias)


async def indexing_failures(client: Client, layout: Layout) -> int:
    """Documents that Redis holds but could not index; the only sign of a vector that is not searchable."""
    with translated():
        info = await cast(Any, client.ft(layout.index)).info()
    plain = {key.decode() if isinstance(key, bytes) else key: value for key, value in info.items()}
    return int(plain["hash_indexing_failures"])


def _fields(version: IndexVersion) -> list[Field]:
    """The search schema. `chunk` and `text` are in the hashes but not in it: a query can return them, and a
    full-text index over every text would cost each write more than the vector does."""
    kinds = {"numeric": NumericField, "text": TextField}
    metadata = [
        TagField(name, separator=TAG_SEPARATOR) if kind == "tag" else kinds[kind](name)
        for _, name, kind in version.metadata
    ]
    vector = {
        "TYPE": version.type,
        "DIM": version.dimension,
        "DISTANCE_METRIC": version.metric.upper(),
        "M": version.m,
        "EF_CONSTRUCTION": version.ef_construction,
    }
    return [
        TagField("id", separator=TAG_SEPARATOR, case_sensitive=True),
        *metadata,
        VectorField("embedding", "HNSW", vector),
    ]

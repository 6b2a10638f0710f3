"""The search index of a version (FT.CREATE), and the alias that readers use."""

from typing import Any, cast

import redis.exceptions as redis_errors
from redis.commands.search.field import Field, NumericField, TagField, TextField, VectorField
from redis.commands.search.index_definition import IndexDefinition, IndexType

from daemon.core.document import TAG_SEPARATOR
from daemon.index.connection import Client, translated
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion


async def ensure(client: Client, pipeline: str, version: IndexVersion) -> Layout:
    """Make sure that the index of a version is there; answers where its keys are.

    Raises:
        FailureClass: Redis failed.
    """
    layout = Layout(pipeline, version.number)
    if not await exists(client, layout.index):
        await create(client, layout, version)
    return layout


async def exists(client: Client, index: str) -> bool:
    """Whether an index or alias of that name is there."""
    return await index_named(client, index) is not None


async def index_named(client: Client, name: str) -> str | None:
    """The index that goes by a name, which may be an alias; None: there is none."""
    try:
        info = await cast(Any, client.ft(name)).info()
    except redis_errors.ResponseError as error:
        text = str(error).lower()
        if "no such index" in text or "unknown index" in text or "not found" in text:
            return None
        with translated():
            raise
    except redis_errors.RedisError:
        with translated():
            raise
    plain = {_text(key): value for key, value in info.items()}
    return _text(plain["index_name"])


async def create(client: Client, layout: Layout, version: IndexVersion) -> None:
    """FT.CREATE over the documents' prefix; documents that are there already are indexed in the background."""
    definition = cast(Any, IndexDefinition)(prefix=[layout.documents_prefix], index_type=IndexType.HASH)
    with translated():
        try:
            await cast(Any, client.ft(layout.index)).create_index(_fields(version), definition=definition)
        except redis_errors.ResponseError as error:
            # Another process may have been faster.
            if "already exists" not in str(error).lower():
                raise


async def point_alias(client: Client, layout: Layout) -> None:
    """Let the alias name this version; readers see the change as one step."""
    with translated():
        await cast(Any, client.ft(layout.index)).aliasupdate(layout.alias)


async def drop(client: Client, layout: Layout) -> None:
    """Drop the index of a version, if it is there; its documents stay."""
    if await exists(client, layout.index):
        with translated():
            await cast(Any, client.ft(layout.index)).dropindex()


async def indexing_failures(client: Client, layout: Layout) -> int:
    """Documents that Redis holds but could not index; the only sign of a vector that is not searchable."""
    with translated():
        info = await cast(Any, client.ft(layout.index)).info()
    plain = {_text(key): value for key, value in info.items()}
    return int(plain["hash_indexing_failures"])


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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

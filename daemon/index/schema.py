"""The search index of a version (FT.CREATE), and the alias that readers use."""

from dataclasses import dataclass
from typing import Any, cast

from redis.commands.search.field import Field, NumericField, TagField, TextField, VectorField
from redis.commands.search.index_definition import IndexDefinition, IndexType
from redis.exceptions import ResponseError

from daemon.core.document import TAG_SEPARATOR
from daemon.index.connection import Client, IndexMissing, translated
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion


async def ensure(client: Client, pipeline: str, version: IndexVersion) -> Layout:
    """Make sure that the index of a version is there; return where its keys are.

    Documents that are there before it are indexed in the background.

    Raises:
        FailureClass: Redis failed.
    """
    layout = Layout(pipeline, version.number)
    if not await exists(client, layout.index):
        definition = cast(Any, IndexDefinition)(prefix=[layout.documents_prefix], index_type=IndexType.HASH)
        with translated():
            try:
                await cast(Any, client.ft(layout.index)).create_index(_fields(version), definition=definition)
            except ResponseError as error:
                # Another process may have been faster.
                if "already exists" not in str(error).lower():
                    raise
    return layout


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What FT.INFO says of an index.

    Attributes:
        name: of the index, also where it was asked for by its alias.
        documents: hashes that it covers.
        indexing_failures: hashes that Redis holds but could not index; the only sign of a vector that no search finds.
        building: whether hashes that were there before it are still being indexed.
    """

    name: str
    documents: int
    indexing_failures: int
    building: bool


async def info(client: Client, name: str) -> IndexInfo | None:
    """Return what Redis says of the index or alias of that name; None where there is none.

    Raises:
        FailureClass: Redis failed.
    """
    try:
        with translated():
            reply = await cast(Any, client.ft(name)).info()
    except IndexMissing:
        return None
    facts = {_text(key): value for key, value in reply.items()}
    return IndexInfo(
        name=_text(facts["index_name"]),
        documents=int(facts["num_docs"]),
        indexing_failures=int(facts["hash_indexing_failures"]),
        building=float(facts["percent_indexed"]) < 1,
    )


async def exists(client: Client, index: str) -> bool:
    """Return whether an index or alias of that name is there."""
    return await info(client, index) is not None


async def point_alias(client: Client, layout: Layout) -> None:
    """Let the alias name this version; readers see the change as one step."""
    with translated():
        await cast(Any, client.ft(layout.index)).aliasupdate(layout.alias)


async def drop(client: Client, layout: Layout) -> None:
    """Drop the index of a version, if it is there; its documents stay."""
    if await exists(client, layout.index):
        with translated():
            await cast(Any, client.ft(layout.index)).dropindex()


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _fields(version: IndexVersion) -> list[Field]:
    """Return the search schema. `chunk` and `text` are in the hashes but not in it: a query can return them, and a
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

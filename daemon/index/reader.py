"""Searching: KNN over one index, answers as chunks or as documents (their best chunk)."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from redis.commands.search.query import Query

from daemon.core.vectors import encode
from daemon.errors import ConfigError, StopProcess
from daemon.index.connection import Client, IndexMissing, translated
from daemon.index.registry import IndexVersion, Versions

_CHUNKS_PER_DOCUMENT = 4


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer.

    Attributes:
        distance: by the index's metric; smaller is nearer.
        fields: the metadata of the document.
    """

    id: str
    chunk: int
    text: str
    distance: float
    fields: dict[str, str]


async def knn(
    client: Client,
    index: str,
    vector: NDArray[np.float32],
    k: int,
    *,
    type: str = "FLOAT32",
    filter: str = "*",
    ef_runtime: int | None = None,
    by_chunk: bool = False,
) -> list[Hit]:
    """Return the k nearest documents (or chunks) to a vector.

    Args:
        index: name or alias.
        vector: float32 [dimension].
        type: number format of the index's vectors.
        filter: a Redis search expression over the metadata, e.g. `@category:{noun}`.
        ef_runtime: HNSW candidates; more finds better and takes longer.
        by_chunk: answer chunks, several of one document if they are near; else the best chunk of each.

    Raises:
        ConfigError: the filter or the index's name is wrong; says how Redis put it.
        FailureClass: Redis failed.
    """
    count = k if by_chunk else k * _CHUNKS_PER_DOCUMENT
    runtime = f" EF_RUNTIME {max(ef_runtime, count)}" if ef_runtime else ""
    query = (
        Query(f"({filter})=>[KNN {count} @embedding $vector{runtime} AS distance]")
        .sort_by("distance")
        .paging(0, count)
        .dialect(2)
    )
    parameters = cast(dict[str, Any], {"vector": encode(vector[None, :], type)[0]})
    try:
        with translated():
            reply = await cast(Any, client.ft(index)).search(query, query_params=parameters)
    except (StopProcess, IndexMissing) as refused:
        raise ConfigError(
            f"Redis refused the search of {index!r} with filter {filter!r}: {refused}"
        ) from refused
    hits: dict[object, Hit] = {}
    for hit in _hits(reply):
        hits.setdefault((hit.id, hit.chunk) if by_chunk else hit.id, hit)
    return list(hits.values())[:k]


async def search(
    client: Client,
    pipeline: str,
    embed: Callable[[IndexVersion], Awaitable[NDArray[np.float32]]],
    k: int,
    *,
    filter: str = "*",
    ef_runtime: int | None = None,
    by_chunk: bool = False,
) -> tuple[IndexVersion, list[Hit]]:
    """Return the nearest in the index version that readers see now, whatever model it was made with; for applications.

    A version's own index is searched, not the alias: that may move to another model while the text is embedded.

    Args:
        embed: gives the query as a vector of that version's model; float32 [dimension].
        k, filter, ef_runtime, by_chunk: see `knn`.

    Returns:
        The version that was searched, and its answers.

    Raises:
        ConfigError: there is no index yet, or the filter is wrong.
        FailureClass: Redis failed, or what `embed` raises.
    """
    versions = Versions(client, pipeline)
    version = (await versions.known()).version()
    while True:
        index, vector = versions.layout(version.number).index, await embed(version)
        try:
            return version, await knn(
                client,
                index,
                vector,
                k,
                type=version.type,
                filter=filter,
                ef_runtime=ef_runtime,
                by_chunk=by_chunk,
            )
        except ConfigError:
            # It was replaced, and even removed, while the text was embedded.
            searched, version = version, (await versions.known()).version()
            if version.number == searched.number:
                raise


def _hits(reply: Any) -> Iterator[Hit]:
    """Give the answers in a reply; RESP3 gives maps of bytes."""
    for result in {_text(name): value for name, value in reply.items()}["results"]:
        attributes = {_text(name): value for name, value in result.items()}.get("extra_attributes")
        if attributes is None:
            continue
        row = {_text(name): _text(value) for name, value in attributes.items() if _text(name) != "embedding"}
        yield Hit(
            id=row.pop("id"),
            chunk=int(row.pop("chunk")),
            text=row.pop("text"),
            distance=float(row.pop("distance")),
            fields=row,
        )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

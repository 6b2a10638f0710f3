"""`livevec search`: finds the documents nearest to a text."""

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli import context as given
from daemon.cli.context import Json

if TYPE_CHECKING:
    from daemon.embedding.embedder import Embedder, Embeddings
    from daemon.index.reader import Hit
    from daemon.index.registry import IndexVersion
    from daemon.settings import Config, Pipeline

_TEXT_SHOWN = 200


@dataclass(frozen=True)
class SearchResult:
    """The nearest documents, and how long the model and Redis took."""

    hits: "tuple[Hit, ...]"
    embed_ms: float
    search_ms: float


def search(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    text: Annotated[str, typer.Argument(help="What to search for, in plain words.")],
    filter: Annotated[
        str, typer.Option(help="Redis search expression over the metadata: '@category:{noun}'.")
    ] = "*",
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many hits to return.")] = 5,
    chunks: Annotated[bool, typer.Option("--chunks", help="Return chunks, not documents.")] = False,
    as_json: Json = False,
) -> None:
    """Find the documents whose meaning is nearest to TEXT."""
    from daemon.cli import console

    config = given.resolved(context)
    settings = config.pipeline(pipeline)
    result = asyncio.run(nearest(config, settings, text, k, filter=filter, by_chunk=chunks))
    if as_json:
        console.print_json({"pipeline": pipeline, "query": text, **asdict(result)})
        return
    names = [field.field for field in settings.metadata]
    table = console.table("distance", "id", *(["chunk"] if chunks else []), *names, "text")
    for hit in result.hits:
        shown = hit.text if len(hit.text) <= _TEXT_SHOWN else hit.text[: _TEXT_SHOWN - 1] + "…"
        values = [
            hit.id,
            *([str(hit.chunk)] if chunks else []),
            *(hit.fields.get(name, "") for name in names),
        ]
        table.add_row(f"{hit.distance:.4f}", *(console.plain(value) for value in (*values, shown)))
    console.out.print(table)
    console.err.print(
        f"{len(result.hits)} found; embedding {result.embed_ms:.1f} ms, search {result.search_ms:.1f} ms"
    )


async def nearest(
    config: "Config", pipeline: "Pipeline", text: str, k: int, *, filter: str = "*", by_chunk: bool = False
) -> SearchResult:
    """Embed a text as a query, and search the index version that readers see."""
    from daemon.embedding.factory import make_embedder
    from daemon.index.connection import connect
    from daemon.index.reader import search as searched

    began_s = embedded_s = 0.0

    async def embed(version: "IndexVersion") -> "Embeddings":
        nonlocal began_s, embedded_s
        embedder = make_embedder(version.embedding(config.embedding))
        try:
            await embedder.start()
            began_s = time.perf_counter()
            vector: Embeddings = (await embed_query(embedder, text))[0]
            embedded_s = time.perf_counter()
        finally:
            await embedder.close()
        return vector

    client = connect(config.redis)
    try:
        _, hits = await searched(
            client,
            pipeline.name,
            embed,
            k,
            filter=filter,
            ef_runtime=pipeline.index.ef_runtime,
            by_chunk=by_chunk,
        )
        ended_s = time.perf_counter()
    finally:
        await client.aclose()
    return SearchResult(
        tuple(hits), round((embedded_s - began_s) * 1000, 3), round((ended_s - embedded_s) * 1000, 3)
    )


async def embed_query(embedder: "Embedder", text: str) -> "Embeddings":
    """Return the vector of a query, float32 [1, dimension]; the model's prompt for queries, if it has one, is used."""
    return await embedder.embed([text], prompt="query")

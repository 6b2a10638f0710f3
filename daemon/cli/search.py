"""`livevec search`: finds the documents nearest to a text."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated

import typer

from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from daemon.embedding.embedder import Embeddings
from daemon.embedding.factory import make_embedder
from daemon.index import reader
from daemon.index.connection import connect
from daemon.index.reader import Hit
from daemon.index.registry import IndexVersion
from daemon.settings import Config, Pipeline


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
    config = given.resolved(context)
    settings = config.pipeline(pipeline)
    hits, embed_ms, search_ms = asyncio.run(_nearest(config, settings, text, k, filter, chunks))
    if as_json:
        content = {"pipeline": pipeline, "query": text, "hits": [asdict(hit) for hit in hits]}
        console.print_json({**content, "embed_ms": embed_ms, "search_ms": search_ms})
        return
    names = [field.field for field in settings.metadata]
    table = console.table("distance", "id", *(["chunk"] if chunks else []), *names, "text")
    for hit in hits:
        fields = (hit.fields.get(name, "") for name in names)
        cells = (f"{hit.distance:.4f}", hit.id, *([hit.chunk] if chunks else []), *fields)
        table.add_row(*map(console.plain, (*cells, console.shortened(hit.text, 200))))
    console.out.print(table)
    console.err.print(f"{len(hits)} found; embedding {embed_ms:.1f} ms, search {search_ms:.1f} ms")


async def _nearest(
    config: Config, pipeline: Pipeline, text: str, k: int, filter: str, by_chunk: bool
) -> tuple[list[Hit], float, float]:
    """Embed a text as a query, and search the index version that readers see; return the ms of both, too."""
    began_s = embedded_s = 0.0

    async def embed(version: IndexVersion) -> Embeddings:
        nonlocal began_s, embedded_s
        embedder = make_embedder(version.embedding(config.embedding))
        try:
            await embedder.start()
            began_s = time.perf_counter()
            vector: Embeddings = (await embedder.embed([text], prompt="query"))[0]
            embedded_s = time.perf_counter()
        finally:
            await embedder.close()
        return vector

    ef_runtime = pipeline.index.ef_runtime
    async with aclosing(connect(config.redis)) as client:
        _, hits = await reader.search(
            client, pipeline.name, embed, k, filter=filter, ef_runtime=ef_runtime, by_chunk=by_chunk
        )
        ended_s = time.perf_counter()
    embed_ms, search_ms = (embedded_s - began_s) * 1000, (ended_s - embedded_s) * 1000
    return hits, round(embed_ms, 3), round(search_ms, 3)

"""How well a new index version answers: its recall against exact search, and its answers beside the old one's."""

from collections.abc import AsyncIterator, Mapping, Sequence

import numpy as np

from daemon.core.vectors import Floats, NearestOf, decode, distances
from daemon.embedding.embedder import Embedder
from daemon.embedding.factory import make_embedder
from daemon.index.layout import Layout, document_id
from daemon.index.reader import Hit, knn
from daemon.index.registry import IndexVersion
from daemon.projection.build import Projection
from daemon.verify.stored import StoredDocuments
from workflows.reindex.contract import NEIGHBOURS, Answers, Quality
from workflows.resources import Resources

_VECTORS_PER_READ = 200
_TEXTS_PER_REQUEST = 16
_ANSWERS_SHOWN = 5
_EQUAL = 1e-6
"""Distances nearer to one another than this are equal: two texts may have one vector."""


class QualityCheck:
    """Measures the new version, which `projection` leads to, beside an old one; `vectors`: compared so far."""

    def __init__(self, resources: Resources, projection: Projection, old: IndexVersion) -> None:
        self.vectors = 0
        self._resources = resources
        self._call = resources.patience.call
        self._projection = projection
        self._old = old
        self._version = projection.version
        self._layout = projection.writer.layout
        self._stored = StoredDocuments(projection.client, projection.writer)

    async def run(self) -> Quality:
        """Measure; raise FailureClass where a part failed."""
        queries = await self._sampled()
        if not queries:
            return Quality()
        new = await self._embedded(self._projection.embedder, self._version.model, queries)
        nearest, left_out = await self._nearest(new)
        hits = nearest_count = 0
        for number in range(len(queries)):
            recalled, expected = await self._recalled(new[number], nearest.names(number), left_out)
            hits, nearest_count = hits + recalled, nearest_count + expected
        answers = [answer async for answer in self._answers(queries, new)]
        return Quality(
            recall=round(hits / nearest_count, 4) if nearest_count else None,
            queries=len(queries),
            vectors=nearest.vectors,
            left_out=left_out,
            overlap=round(sum(answer.overlap for answer in answers) / len(answers), 4),
            answers=tuple(answers[:_ANSWERS_SHOWN]),
        )

    async def _sampled(self) -> dict[str, str]:
        """Choose rows from all over the table; return the texts of their first chunks, by document id."""
        projection, count = self._projection, self._resources.config.reindex.queries
        bounds = await self._call(
            projection.reader.part, projection.reader.key_ranges, projection.table, count + 1
        )
        names = [document_id(key) for key in bounds]
        keys = [self._layout.chunk_key(name, 0) for name in names]
        texts = await self._call("redis", self._stored.values, keys, "text")
        return {name: text.decode() for name, text in zip(names, texts, strict=True) if text is not None}

    async def _embedded(self, embedder: Embedder, model: str, queries: Mapping[str, str]) -> Floats:
        """Return float32 [query, dimension]; the texts go nowhere but to the embedder."""
        parts, name, texts = [], f"embedder {model}", list(queries.values())
        for start in range(0, len(texts), _TEXTS_PER_REQUEST):
            part = texts[start : start + _TEXTS_PER_REQUEST]
            async with self._resources.share.place(self._projection.client):
                parts.append(await self._call(name, embedder.embed, part, prompt="query"))
        return np.concatenate(parts)

    async def _nearest(self, queries: Floats) -> tuple[NearestOf, bool]:
        """Find the nearest of all vectors in the index, or of as many as are allowed: then with True beside it."""
        # Twice as many as are compared: some will have changed by then.
        nearest = NearestOf(queries, self._version.metric, 2 * NEIGHBOURS)
        async for step in self._stored.keyspace.steps(self._resources.patience):
            if nearest.vectors >= self._resources.config.reindex.exact_vectors_max:
                return nearest, True
            if step.restarted:
                nearest = NearestOf(queries, self._version.metric, 2 * NEIGHBOURS)
            keys = [key for key in step.keys if key.startswith(self._layout.documents_prefix)]
            for start in range(0, len(keys), _VECTORS_PER_READ):
                vectors = await self._vectors(keys[start : start + _VECTORS_PER_READ])
                if vectors:
                    nearest.add(list(vectors), np.stack(list(vectors.values())))
            self.vectors = nearest.vectors
        return nearest, False

    async def _recalled(self, query: Floats, exact: list[str], left_out: bool) -> tuple[int, int]:
        """Return how many of the nearest the index answers, and of how many; by the vectors as they are now."""
        hits = await self._knn(self._version, query, by_chunk=True)
        answered = [self._layout.chunk_key(hit.id, hit.chunk) for hit in hits]
        if left_out:
            # What exact search did not see cannot be judged.
            answered = [key for key in answered if key in exact]
        now = await self._vectors([*dict.fromkeys((*exact, *answered))])
        if not now:
            return 0, 0
        away = distances(query[None, :], np.stack(list(now.values())), self._version.metric)[0]
        by_key = dict(zip(now, away.tolist(), strict=True))
        count = len(answered) if left_out else min(NEIGHBOURS, len(by_key))
        if not count:
            return 0, 0
        farthest = sorted(by_key.values())[count - 1] + _EQUAL
        return min(count, sum(by_key.get(key, np.inf) <= farthest for key in answered)), count

    async def _answers(self, queries: Mapping[str, str], new: Floats) -> AsyncIterator[Answers]:
        old = await self._embedded_by_old(queries, new)
        for number, name in enumerate(queries):
            before = await self._knn(self._old, old[number])
            after = await self._knn(self._version, new[number])
            both = {hit.id for hit in before} & {hit.id for hit in after}
            most = max(len(before), len(after))
            yield Answers(
                query=name,
                old=_pairs(before),
                new=_pairs(after),
                overlap=round(len(both) / most, 4) if most else 1.0,
            )

    async def _knn(self, version: IndexVersion, query: Floats, by_chunk: bool = False) -> list[Hit]:
        index = Layout(self._layout.pipeline, version.number).index
        return await self._call(
            "redis",
            knn,
            self._projection.client,
            index,
            query,
            NEIGHBOURS,
            type=version.type,
            ef_runtime=self._projection.pipeline.index.ef_runtime,
            by_chunk=by_chunk,
        )

    async def _embedded_by_old(self, queries: Mapping[str, str], new: Floats) -> Floats:
        old = self._old
        if (old.model, old.dimension) == (self._version.model, self._version.dimension):
            return new
        embedder = make_embedder(old.embedding(self._resources.config.embedding))
        try:
            await self._call(f"embedder {old.model}", embedder.start)
            return await self._embedded(embedder, old.model, queries)
        finally:
            await embedder.close()

    async def _vectors(self, keys: Sequence[str]) -> dict[str, Floats]:
        """Read float32 [dimension] of each hash that has a vector as the index takes it."""
        size_bytes = self._version.dimension * (4 if self._version.type == "FLOAT32" else 2)
        stored = await self._call("redis", self._stored.values, keys, "embedding")
        whole = {
            key: vector
            for key, vector in zip(keys, stored, strict=True)
            if vector is not None and len(vector) == size_bytes
        }
        if not whole:
            return {}
        return dict(zip(whole, decode(list(whole.values()), self._version.type), strict=True))


def _pairs(hits: Sequence[Hit]) -> tuple[tuple[str, float], ...]:
    return tuple((hit.id, round(hit.distance, 6)) for hit in hits)

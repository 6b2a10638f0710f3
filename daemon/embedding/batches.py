"""Texts -> vectors as Redis stores them: equal texts once, requests of bounded size, a refused batch bisected."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.core.vectors import encode
from daemon.embedding.embedder import TextEmbedder
from daemon.errors import RejectRow, SplitBatch
from daemon.patience import Patience

Vector = bytes | RejectRow


@dataclass(frozen=True, slots=True)
class Embedded:
    """vectors[i] belongs to texts[i], or says why that text can never be embedded.

    Attributes:
        texts: texts that were sent.
        embed_s: time of inference, without waiting for an earlier batch.
    """

    vectors: list[Vector]
    texts: int
    embed_s: float


@dataclass(slots=True)
class EmbeddingBatches:
    """Sends texts to an embedder.

    Attributes:
        texts_max: texts in one request.
        vector_type: number format of the index's vectors.
        part: what the embedder is called in the health.
    """

    embedder: TextEmbedder
    texts_max: int
    vector_type: str
    part: str = "embedder"
    _free_at_s: float = field(default=0.0, init=False)

    async def embed(self, texts: Sequence[str], patience: Patience) -> Embedded:
        """Return the vectors of all texts; wait while the embedder is away.

        Raises:
            StopProcess: the model is missing or of another dimension.
        """
        started_s = time.monotonic()
        unique = list(dict.fromkeys(texts))
        parts = [unique[at : at + self.texts_max] for at in range(0, len(unique), self.texts_max)]
        vectors_of: dict[str, Vector] = {}
        for part, vectors in zip(
            parts, await asyncio.gather(*(self._request(part, patience) for part in parts)), strict=True
        ):
            vectors_of.update(zip(part, vectors, strict=True))
        ended_s = time.monotonic()
        busy_s = ended_s - max(started_s, self._free_at_s)
        self._free_at_s = ended_s
        return Embedded([vectors_of[text] for text in texts], len(unique), busy_s)

    async def _request(self, texts: Sequence[str], patience: Patience) -> list[Vector]:
        try:
            vectors = await patience.call(self.part, self.embedder.embed, texts)
        except (SplitBatch, RejectRow) as error:
            if len(texts) == 1:
                reason = error.reason if isinstance(error, RejectRow) else "refused_by_model"
                return [RejectRow(str(error), reason)]
            half = len(texts) // 2
            return await self._request(texts[:half], patience) + await self._request(texts[half:], patience)
        return list(encode(vectors, self.vector_type))

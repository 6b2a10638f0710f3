"""The ceiling: what the embedder alone does with the same texts, fed without a pause."""

import asyncio
import time
from collections.abc import Iterator, Sequence

from daemon.embedding.embedder import Embedder
from daemon.embedding.factory import make_embedder
from daemon.settings import EmbeddingSettings

TEXTS_PER_REQUEST = 64
REQUESTS_IN_FLIGHT = 2


def texts_per_s(settings: EmbeddingSettings, warm_up: Sequence[str], texts: Sequence[str]) -> float:
    """Return the speed over `texts`, measured after `warm_up` was embedded.

    Raises:
        LivevecError: the embedder refused, or does not answer.
    """

    async def measure() -> float:
        embedder = make_embedder(settings)
        try:
            await embedder.start()
            await _feed(embedder, warm_up)
            began_s = time.monotonic()
            await _feed(embedder, texts)
            return len(texts) / (time.monotonic() - began_s)
        finally:
            await embedder.close()

    return asyncio.run(measure())


async def _feed(embedder: Embedder, texts: Sequence[str]) -> None:
    requests = requests_of(texts)

    async def send() -> None:
        for request in requests:
            await embedder.embed(request)

    await asyncio.gather(*(send() for _ in range(REQUESTS_IN_FLIGHT)))


def requests_of(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split the texts, in their order, into requests of TEXTS_PER_REQUEST."""
    return (texts[start : start + TEXTS_PER_REQUEST] for start in range(0, len(texts), TEXTS_PER_REQUEST))

"""An embedder whose vectors depend on nothing but the model and the text."""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from daemon.embedding.embedder import Embeddings, EmbeddingSpace, Prompt
from daemon.errors import FailureClass, RetryLater
from tests.support.shell.faults import Faults
from tests.support.shell.process import Process


class EmbeddingProvider:
    """What serves the models, and outlives a process.

    Attributes:
        away: models that do not answer.
        refuses: what it does to a text, given model and text; None: it embeds it. A failure of one text fails its
            whole request, as a server does.
        texts: all that were embedded, with their model.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.away: set[str] = set()
        self.refuses: Callable[[str, str], FailureClass | None] = lambda *_: None
        self.texts: list[tuple[str, str]] = []

    def embedder(self, model: str, dimension: int, process: Process | None = None) -> "FakeEmbedder":
        return FakeEmbedder(self, model, dimension, process or Process())


class FakeEmbedder:
    """See `daemon.embedding.embedder.Embedder`."""

    def __init__(self, provider: EmbeddingProvider, model: str, dimension: int, process: Process) -> None:
        self._provider = provider
        self._process = process
        self.space = EmbeddingSpace(model, dimension, 256, f"fingerprint of {model}")
        self.closed = False

    async def start(self) -> EmbeddingSpace:
        await self._call("start", [])
        return self.space

    async def embed(self, texts: Sequence[str], *, prompt: Prompt = "document") -> Embeddings:
        del prompt
        await self._call("embed", texts)
        vectors = np.stack([vector(self.space.model, text, self.space.dimension) for text in texts])
        vectors.flags.writeable = False
        return vectors

    async def check(self) -> None:
        await self._call("check", [])

    async def close(self) -> None:
        self.closed = True

    async def _call(self, name: str, texts: Sequence[str]) -> None:
        assert not self.closed, "the embedder was closed"
        self._process.check()
        provider, model = self._provider, self.space.model

        def away(_: bool) -> Exception:
            return RetryLater(f"the embedder does not answer for {model}", 0.1)

        def apply(_: int | None) -> None:
            self._process.check()
            if model in provider.away:
                raise away(False)
            for text in texts:
                if (failure := provider.refuses(model, text)) is not None:
                    raise failure
            provider.texts += [(model, text) for text in texts]

        await provider.faults.call("embedder", name, model, apply, away)
        self._process.check()


def vector(model: str, text: str, dimension: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """float32 [dimension], of length 1."""
    seed = int.from_bytes(blake2b(f"{model}\0{text}".encode(), digest_size=8).digest(), "little")
    found = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return found / np.linalg.norm(found)

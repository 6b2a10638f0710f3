"""The embedder that the configuration names, and the embedders of a process: one for each model, shared by all."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from daemon.embedding.embedder import Embedder, Embeddings, EmbeddingSpace, Prompt
from daemon.errors import ConfigError, RetryLater
from daemon.patience import Patience
from daemon.settings import EmbeddingSettings


def make_embedder(settings: EmbeddingSettings, *, any_dimension: bool = False) -> Embedder:
    """Build it; nothing is connected yet. Only the client of the provider in use is loaded.

    Args:
        any_dimension: take whatever the model has; else one that differs from the settings is refused.

    Raises:
        ConfigError: a setting of that provider cannot be used.
    """
    if settings.provider == "openai":
        if any_dimension:
            raise ConfigError(
                f"an OpenAI-compatible server does not tell how long the vectors of {settings.model!r} are; "
                "give their dimension"
            )
        from daemon.embedding.openai.embedder import OpenAIEmbedder

        return OpenAIEmbedder(settings)
    from daemon.embedding.triton.embedder import TritonEmbedder

    return TritonEmbedder(
        settings.url,
        settings.model,
        dimension=None if any_dimension else settings.dimension,
        timeout_s=settings.timeout_s,
        requests_max=settings.requests_max,
    )


@dataclass(frozen=True, slots=True)
class StartingEmbedder:
    """An embedder that may be asked before its provider has answered: a call waits until it is started.

    Attributes:
        started: gives the embedder, or what keeps it from starting, which every call then raises.
    """

    started: "asyncio.Future[Embedder]"

    async def embed(self, texts: Sequence[str], *, prompt: Prompt = "document") -> Embeddings:
        """Embed once the embedder is started, see `TextEmbedder.embed`."""
        embedder = await asyncio.shield(self.started)
        return await embedder.embed(texts, prompt=prompt)


class Embedders:
    """Each is started when it is first asked for.

    Args:
        make: builds one; nothing is connected yet.
    """

    def __init__(
        self, patience: Patience, make: Callable[[EmbeddingSettings], Embedder] = make_embedder
    ) -> None:
        self._patience = patience
        self._make = make
        self._checking = asyncio.Lock()
        self._started: dict[tuple[str, int], tuple[Embedder, EmbeddingSpace]] = {}

    async def get(self, settings: EmbeddingSettings) -> tuple[Embedder, EmbeddingSpace]:
        """Return the embedder of that model and dimension; wait while its provider is away.

        Raises:
            ConfigError: the settings do not fit together.
            StopProcess: the model is missing, or gives vectors of another dimension.
        """
        key = (settings.model, settings.dimension)
        if key not in self._started:
            embedder = self._make(settings)
            try:
                space = await self._patience.call(f"embedder {settings.model}", embedder.start)
            except BaseException:
                await embedder.close()
                raise
            # Another may have been faster while this one started.
            if key in self._started:
                await embedder.close()
            else:
                self._started[key] = embedder, space
        return self._started[key]

    async def check(self) -> None:
        """Make sure that each one works, and show it in the health.

        Raises:
            StopProcess: a model is gone, or is another one now.
        """
        async with self._checking:
            for (model, _), (embedder, _) in list(self._started.items()):
                with suppress(RetryLater):
                    await self._patience.once(f"embedder {model}", embedder.check)

    async def keep_only(self, used: Collection[tuple[str, int]]) -> None:
        """Close those of other (model, dimension)s: a model that no index needs may go away."""
        if self._started.keys() - set(used):
            async with self._checking:
                for key in self._started.keys() - set(used):
                    embedder, _ = self._started.pop(key)
                    await embedder.close()

    async def close(self) -> None:
        for embedder, _ in self._started.values():
            await embedder.close()
        self._started.clear()

"""The embedders of a process: one for each model, shared by all that embed with it."""

import asyncio
from collections.abc import Collection

from daemon.embedding.embedder import Embedder, EmbeddingSpace
from daemon.embedding.factory import make_embedder
from daemon.patience import Patience
from daemon.settings import EmbeddingSettings


class Embedders:
    """Started when they are first asked for."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._checking = asyncio.Lock()
        self._started: dict[tuple[str, int], tuple[Embedder, EmbeddingSpace]] = {}

    async def get(self, settings: EmbeddingSettings) -> tuple[Embedder, EmbeddingSpace]:
        """The embedder of that model and dimension; waits while its provider is away.

        Raises:
            ConfigError: the settings do not fit together.
            StopProcess: the model is missing, or gives vectors of another dimension.
        """
        key = (settings.model, settings.dimension)
        if key not in self._started:
            embedder = make_embedder(settings)
            try:
                space = await self._patience.call("embedder", embedder.start)
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
        """See `Embedder.check`, of each."""
        async with self._checking:
            for embedder, _ in list(self._started.values()):
                await embedder.check()

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

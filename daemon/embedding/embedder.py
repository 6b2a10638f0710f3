"""What the pipeline needs of a provider of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Which vectors may be compared with one another.

    Attributes:
        model: the model's name at its provider.
        dimension: numbers in one vector.
        max_tokens: what a text is cut to; 0 where the provider does not say.
        fingerprint: of weights, tokenizer, pooling and prompts; empty where the provider has none.
    """

    model: str
    dimension: int
    max_tokens: int
    fingerprint: str


class Embedder(Protocol):
    """Texts to vectors. Several calls may be in flight at once.

    Every method raises a FailureClass of daemon.errors and nothing of the vendor's.
    """

    @property
    def space(self) -> EmbeddingSpace:
        """Known once `start` has returned."""

    async def start(self) -> EmbeddingSpace:
        """Connects, reads what the model is and proves it with a real inference."""

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """float32 [len(texts), dimension], C-contiguous, read-only; row i belongs to texts[i]."""

    async def check(self) -> None:
        """Embeds one short text, and makes sure that the space is still the one found at the start."""

    async def close(self) -> None:
        """Ends the connection; calls in flight fail."""

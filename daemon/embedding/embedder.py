"""What the pipeline needs of a provider of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]
Prompt = Literal["document", "query"]
"""Which of the prompts that a model was trained with is put before a text."""


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Which vectors may be compared with one another.

    Attributes:
        model: the model's name at its provider.
        dimension: numbers in one vector.
        max_tokens: what a text is cut to; 0 where the provider does not say.
        fingerprint: of weights, tokenizer, pooling and prompts, as far as the provider tells them.
    """

    model: str
    dimension: int
    max_tokens: int
    fingerprint: str


class TextEmbedder(Protocol):
    """Texts to vectors, and nothing else. Several calls may be in flight at once."""

    async def embed(self, texts: Sequence[str], *, prompt: Prompt = "document") -> Embeddings:
        """Return float32 [len(texts), dimension], C-contiguous, read-only; row i belongs to texts[i]."""


class Embedder(TextEmbedder, Protocol):
    """A provider of embeddings.

    Every method raises a FailureClass of daemon.errors and nothing of the vendor's.
    """

    @property
    def space(self) -> EmbeddingSpace:
        """Known once `start` has returned."""

    async def start(self) -> EmbeddingSpace:
        """Connect, read what the model is and proves it with a real inference."""

    async def check(self) -> None:
        """Make sure, by a real inference, that it works and that the space is still the one found at the start.

        Called every few seconds; where an inference costs money, one of the last minute is proof enough.
        """

    async def close(self) -> None:
        """End the connection; calls in flight fail."""

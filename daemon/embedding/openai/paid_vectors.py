"""Vectors of calls that failed as a whole after a part of them had been answered, so that no text is paid for twice.

Without them a call above the provider's limit of tokens per minute would never end: each try would use up the limit
with the same texts.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from daemon.embedding.embedder import Embeddings

_BYTES_MAX = 32 * 1024 * 1024


class PaidVectors:
    """Kept until they are asked for, the latest where there are too many."""

    def __init__(self, dimension: int) -> None:
        self._texts_max = _BYTES_MAX // (4 * dimension)
        self._vectors: dict[bytes, Embeddings] = {}

    def keep(self, vectors: Mapping[str, Embeddings]) -> None:
        """Float32 [dimension] of each text."""
        self._vectors.update((_key(text), vector.copy()) for text, vector in vectors.items())
        while len(self._vectors) > self._texts_max:
            del self._vectors[next(iter(self._vectors))]

    def take(self, texts: Sequence[str]) -> dict[str, Embeddings]:
        """Those of these texts that are there; they are not kept any longer."""
        if not self._vectors:
            return {}
        found = ((text, self._vectors.pop(_key(text), None)) for text in dict.fromkeys(texts))
        return {text: vector for text, vector in found if vector is not None}


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()

"""Answers of /embeddings as arrays, from base64 or lists of numbers in any order; and those that are kept for later."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from daemon.embedding.embedder import Embeddings
from daemon.embedding.openai.failures import Cause, Failure

_MALFORMED = Failure(Cause.MALFORMED)
_KEPT_BYTES_MAX = 32 * 1024 * 1024


def embeddings_of(content: bytes, texts: int, dimension: int) -> Embeddings | Failure:
    """Return float32 [texts, dimension], C-contiguous, read-only; or why the answer is none.

    base64 is asked for, since it takes a ninth of the time to read (500 of 1,536: 10 ms, not
    87), but many servers send numbers all the same.
    """
    try:
        items = orjson.loads(content)["data"]
        rows = [_row(item["embedding"]) for item in _in_order(items, texts)]
    # What an answer of another shape leads to; bytes of a broken base64 are no multiple of four.
    except (KeyError, TypeError, ValueError, binascii.Error, OverflowError):
        return _MALFORMED
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        return _MALFORMED
    if lengths != {dimension}:
        return Failure(Cause.OTHER_DIMENSION, f"{len(rows[0])} numbers, [embedding] dimension is {dimension}")
    embeddings = np.stack(rows)
    if not np.isfinite(embeddings).all():
        return Failure(Cause.NOT_FINITE)
    embeddings.setflags(write=False)
    return embeddings


def _in_order(items: Sequence[Any], texts: int) -> Sequence[Any]:
    """Return the items in the order of the texts; without indexes they are in it.

    Raises:
        ValueError: not one item for each text.
    """
    if len(items) != texts:
        raise ValueError
    indexes: list[Any] = [item.get("index") if isinstance(item, dict) else None for item in items]
    if all(index is None for index in indexes):
        return items
    if sorted(indexes) != list(range(texts)):
        raise ValueError
    return sorted(items, key=lambda item: int(item["index"]))


def _row(value: Any) -> Embeddings:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32, copy=False)
    with np.errstate(over="ignore"):  # What does not fit into 32 bits is told as not finite.
        row = np.array(value, np.float32)
    if row.ndim != 1:
        raise ValueError
    return row


class PaidVectors:
    """Vectors of calls that failed as a whole after a part of them had been answered: no text is paid for twice.

    Without them a call above the provider's limit of tokens per minute would never end: each try would use up the
    limit with the same texts. They are kept until they are asked for; of too many, the latest.
    """

    def __init__(self, dimension: int) -> None:
        self._texts_max = _KEPT_BYTES_MAX // (4 * dimension)
        self._vectors: dict[bytes, Embeddings] = {}

    def keep(self, vectors: Mapping[str, Embeddings]) -> None:
        """Keep float32 [dimension] of each text."""
        self._vectors.update((_key(text), vector.copy()) for text, vector in vectors.items())
        while len(self._vectors) > self._texts_max:
            del self._vectors[next(iter(self._vectors))]

    def take(self, texts: Sequence[str]) -> dict[str, Embeddings]:
        """Return those of these texts that are there; they are not kept any longer."""
        if not self._vectors:
            return {}
        vectors = ((text, self._vectors.pop(_key(text), None)) for text in dict.fromkeys(texts))
        return {text: vector for text, vector in vectors if vector is not None}


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()

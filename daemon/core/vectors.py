"""Vectors as Redis stores them (little-endian FLOAT32, FLOAT16 or BFLOAT16), and exact search over them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUMBER_BYTES = {"FLOAT32": 4, "FLOAT16": 2, "BFLOAT16": 2}


def size_bytes(type: str, dimension: int) -> int:
    """Return how many bytes one vector takes."""
    return _NUMBER_BYTES[type] * dimension


def encode(vectors: NDArray[np.float32], type: str) -> list[bytes]:
    """Bytes of each row of float32 [n, dimension]."""
    if type == "FLOAT16":
        rows = vectors.astype("<f2")
    elif type == "BFLOAT16":
        bits = np.ascontiguousarray(vectors, "<f4").view("<u4").astype(np.uint64)
        rows = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")  # round to nearest even
    else:
        rows = vectors.astype("<f4", copy=False)
    return [row.tobytes() for row in rows]


def decode(rows: Sequence[bytes], type: str) -> NDArray[np.float32]:
    """The inverse of `encode`: float32 [n, dimension]."""
    data = b"".join(rows)
    if type == "FLOAT16":
        flat = np.frombuffer(data, "<f2").astype(np.float32)
    elif type == "BFLOAT16":
        flat = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        flat = np.frombuffer(data, "<f4")
    return flat.reshape(len(rows), -1)


Floats = NDArray[np.float32]


def distances(queries: Floats, vectors: Floats, metric: str) -> Floats:
    """float32 [queries, vectors], by the index's metric as Redis defines it; smaller is nearer.

    Args:
        metric: cosine (1 - cosine), l2 (squared) or ip (1 - inner product).
    """
    if metric == "l2":
        squares = (queries**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1)[None, :]
        return np.asarray(squares - 2 * queries @ vectors.T, np.float32)
    if metric == "cosine":
        queries, vectors = _normalized(queries), _normalized(vectors)
    return np.asarray(1 - queries @ vectors.T, np.float32)


class NearestOf:
    """The nearest of all vectors that were added, for each query; holds nothing else of them.

    Args:
        queries: float32 [queries, dimension].
        metric: see `distances`.
        k: how many are kept of each query.
    """

    def __init__(self, queries: Floats, metric: str, k: int) -> None:
        self.vectors = 0
        self._queries = queries
        self._metric = metric
        self._k = k
        self._distances = np.full((len(queries), k), np.inf, np.float32)
        self._names = np.full((len(queries), k), "", object)

    def add(self, names: Sequence[str], vectors: Floats) -> None:
        """float32 [names, dimension]"""
        found = np.concatenate([self._distances, distances(self._queries, vectors, self._metric)], axis=1)
        named = np.broadcast_to(np.array(names, object), (len(self._queries), len(names)))
        everyone = np.concatenate([self._names, named], axis=1)
        order = np.argsort(found, axis=1, kind="stable")[:, : self._k]
        self._distances = np.take_along_axis(found, order, axis=1)
        self._names = np.take_along_axis(everyone, order, axis=1)
        self.vectors += len(names)

    def names(self, query: int) -> list[str]:
        """The nearest to that query, the nearest first."""
        return [name for name in self._names[query] if name]


def _normalized(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths), np.float32)

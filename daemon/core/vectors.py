"""Vectors as Redis stores them: little-endian, FLOAT32, FLOAT16 or BFLOAT16."""

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

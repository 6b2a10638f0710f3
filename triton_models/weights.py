"""Reading a safetensors file without torch."""

import json
import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_models.source import ModelSourceError

FloatArray = npt.NDArray[np.float32]


def read_safetensors(path: Path) -> dict[str, FloatArray]:
    """All floating-point tensors of `path` as float32 (views of the mapped file where they are float32).

    The format: 8 bytes with the header's length, a JSON header, then the tensors' bytes
    (https://github.com/huggingface/safetensors#format). The official reader has no bfloat16 for numpy,
    and newer models are published in it.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header_end = 8 + int.from_bytes(mapped[:8], "little")
    if not 8 < header_end <= len(mapped):
        raise ModelSourceError(f"{path} is not a complete safetensors file; download it again")
    tensors: dict[str, FloatArray] = {}
    for name, entry in json.loads(mapped[8:header_end]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if header_end + end > len(mapped):
            raise ModelSourceError(f"{path} ends before its tensor {name!r}; download it again")
        values = _as_float32(mapped, entry["dtype"], header_end + begin, end - begin)
        if values is not None:
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def _as_float32(mapped: mmap.mmap, dtype: str, offset: int, size_bytes: int) -> FloatArray | None:
    """The tensor at `offset`, or None for one that is not floating point (position ids, for instance)."""
    if dtype == "F32":
        return np.frombuffer(mapped, np.float32, size_bytes // 4, offset)
    if dtype == "F16":
        return np.frombuffer(mapped, np.float16, size_bytes // 2, offset).astype(np.float32)
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        halves = np.frombuffer(mapped, np.uint16, size_bytes // 2, offset)
        return (halves.astype(np.uint32) << 16).view(np.float32)
    return None

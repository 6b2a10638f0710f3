"""The reader of a safetensors file, without torch."""

import json
import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_models.source import ModelSource, ModelSourceError

FloatArray = npt.NDArray[np.float32]
WORDS = "embeddings.word_embeddings.weight"


class EncoderTensors:
    """An encoder's tensors by the names that BERT gave them, whatever prefix these have in the file."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._tensors = read_safetensors(source.weights)
        self._prefix = next((name for name in self._tensors if name.endswith(WORDS)), "").removesuffix(WORDS)

    def __getitem__(self, name: str) -> FloatArray:
        try:
            return self._tensors[self._prefix + name]
        except KeyError:
            raise ModelSourceError(
                f"{self._source.weights} has no tensor {name!r}; it is not a BERT-family encoder"
            ) from None

    def positions(self) -> FloatArray:
        """Return the vectors that each place in a text adds to its word's, [max_tokens, hidden_size].

        A text is one sentence, so that every token has type 0, whose vector is added here.
        """
        first = self._source.shape.position_offset
        table = self["embeddings.position_embeddings.weight"][first : first + self._source.max_tokens]
        summed: FloatArray = table + self["embeddings.token_type_embeddings.weight"][0]
        return summed


def read_safetensors(path: Path) -> dict[str, FloatArray]:
    """Read all floating-point tensors of `path` as float32 (views of the mapped file where they are float32).

    The format is 8 bytes with the header's length, a JSON header, then the tensors' bytes
    (https://github.com/huggingface/safetensors#format). The official reader has no bfloat16 for numpy,
    and newer models are published in it.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header_end = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:header_end])
    except ValueError as error:  # An empty file, a page of HTML, a pointer to large-file storage.
        raise ModelSourceError(f"{path} is not a complete safetensors file; download it again") from error
    tensors: dict[str, FloatArray] = {}
    for name, entry in header.items():
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
    """Return the tensor at `offset`, or None for one that is not floating point (position ids, for instance)."""
    if dtype == "F32":
        return np.frombuffer(mapped, np.float32, size_bytes // 4, offset)
    if dtype == "F16":
        return np.frombuffer(mapped, np.float16, size_bytes // 2, offset).astype(np.float32)
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        halves = np.frombuffer(mapped, np.uint16, size_bytes // 2, offset)
        return (halves.astype(np.uint32) << 16).view(np.float32)
    return None

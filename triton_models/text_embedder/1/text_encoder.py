"""Texts to embeddings, in one process: tokenise, sort by length, run the OpenVINO graph in sub-batches."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from tokenizers import Tokenizer

# Lengths are padded to a multiple of this: each new (batch, length) costs OpenVINO 3 to 10 ms once.
LENGTH_STEP = 8
# A sub-batch costs about as much as this many tokens do, so less padding than this is not worth a split.
SUB_BATCH_COST_TOKENS = 32
# More tokens at once are no faster (the activations leave the cache).
SUB_BATCH_TOKENS_MAX = 2048
# A text is cut to this many bytes per allowed token before it is tokenised: tokenising 1 MB costs 0.2 s.
BYTES_PER_TOKEN_MAX = 64
WARM_BATCH_SIZES = range(1, 9)
WARM_LENGTHS = (8, 16, 24, 32)


class TextEncoder:
    """`embed` gives float32 [n, dimension], row i for texts[i]; not to be shared between threads."""

    def __init__(self, folder: Path) -> None:
        settings: dict[str, Any] = json.loads((folder / "settings.json").read_bytes())
        self.dimension: int = settings["dimension"]
        self.max_tokens: int = settings["max_tokens"]
        self.prompts: dict[str, bytes] = {
            role: prompt.encode() for role, prompt in settings["prompts"].items()
        }
        self._text_bytes_max = self.max_tokens * BYTES_PER_TOKEN_MAX
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        core = ov.Core()
        # Without the instructions bfloat16 is emulated, which is slower than float32.
        precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        threads = settings["threads"] or len(os.sched_getaffinity(0))
        compiled = core.compile_model(
            folder / "encoder.xml",
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._infer_request = compiled.create_infer_request()
        self.description = f"OpenVINO {precision}, {threads} threads, {self.max_tokens} tokens at most"

    def warm_up(self) -> None:
        """Runs the shapes of a few short texts once, so that no live row pays for them."""
        for length in WARM_LENGTHS:
            for size in WARM_BATCH_SIZES:
                self._infer([[0] * min(length, self.max_tokens)] * size, length)

    def embed(self, texts: list[bytes]) -> npt.NDArray[np.float32]:
        encodings = self._tokenizer.encode_batch_fast([self._decoded(text) for text in texts])
        tokens: list[list[int]] = [encoding.ids for encoding in encodings]
        embeddings = np.empty((len(texts), self.dimension), np.float32)
        for rows, padded_length in sub_batches([len(ids) for ids in tokens]):
            embeddings[rows] = self._infer([tokens[row] for row in rows], padded_length)
        return embeddings

    def _decoded(self, text: bytes) -> str:
        return text[: self._text_bytes_max].decode("utf-8", "replace")

    def _infer(self, tokens: list[list[int]], padded_length: int) -> npt.NDArray[np.float32]:
        padded_length = min(padded_length, self.max_tokens)
        input_ids = np.zeros((len(tokens), padded_length), np.int64)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        mask = np.arange(padded_length) < lengths[:, None]
        input_ids[mask] = np.concatenate(tokens)
        self._infer_request.infer([input_ids, mask.astype(np.int64)], share_inputs=True)
        embeddings: npt.NDArray[np.float32] = self._infer_request.get_output_tensor(0).data
        return embeddings


def sub_batches(lengths: list[int]) -> Iterator[tuple[list[int], int]]:
    """(rows, padded length) of sub-batches that together hold every row once, shortest texts first.

    A sub-batch is closed where padding it to the next length would cost more than another run does.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    rows: list[int] = []
    padded_length = 0
    for row in order:
        length = -(-lengths[row] // LENGTH_STEP) * LENGTH_STEP
        padding = len(rows) * (length - padded_length)
        if rows and (padding > SUB_BATCH_COST_TOKENS or (len(rows) + 1) * length > SUB_BATCH_TOKENS_MAX):
            yield rows, padded_length
            rows = []
        rows.append(row)
        padded_length = length
    if rows:
        yield rows, padded_length

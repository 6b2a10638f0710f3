"""Texts to embeddings, in one process: tokenise, pack, run the OpenVINO graph."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from tokenizers import Tokenizer

# More tokens in one run are no faster.
RUN_TOKENS_MAX = 1024
# A run costs about as much as attention does over this many empty places of its grid.
EMPTY_PLACES_MAX = 256
# A text is cut to this many bytes per allowed token before it is tokenised: tokenising 1 MB takes 0.2 s.
TEXT_BYTES_PER_TOKEN_MAX = 64

Tokens = Sequence[int]
Embeddings = npt.NDArray[np.float32]


class TextEncoder:
    """Not to be shared between threads."""

    def __init__(self, folder: Path) -> None:
        settings: dict[str, Any] = json.loads((folder / "settings.json").read_bytes())
        self.dimension: int = settings["dimension"]
        self.max_tokens: int = settings["max_tokens"]
        self.prompts: dict[str, bytes] = {
            role: prompt.encode() for role, prompt in settings["prompts"].items()
        }
        self._text_bytes_max = self.max_tokens * TEXT_BYTES_PER_TOKEN_MAX
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
        self._run_request = compiled.create_infer_request()
        self.description = f"OpenVINO {precision}, {threads} threads, {self.max_tokens} tokens at most"

    def warm_up(self) -> None:
        """Runs every number of tokens that `_packed` may give: each costs OpenVINO 3 to 5 ms the first time."""
        count = 0
        while (count := rounded_up(count + 1)) <= RUN_TOKENS_MAX:
            texts, rest = divmod(count, 8)
            self._run([[0] * 8] * texts + [[0] * rest] * (rest > 0))

    def embed(self, texts: Sequence[bytes]) -> Embeddings:
        """float32 [n, dimension]; row i belongs to texts[i]."""
        return self.embed_tokens(self.tokenize(texts))

    def tokenize(self, texts: Sequence[bytes]) -> list[Tokens]:
        """At most `max_tokens` each; bytes that are not UTF-8 become U+FFFD."""
        decoded = [text[: self._text_bytes_max].decode("utf-8", "replace") for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(decoded)]

    def embed_tokens(self, tokens: Sequence[Tokens]) -> Embeddings:
        embeddings = np.empty((len(tokens), self.dimension), np.float32)
        for rows in runs([len(ids) for ids in tokens]):
            embeddings[rows] = self._run([tokens[row] for row in rows])
        return embeddings

    def _run(self, tokens: Sequence[Tokens]) -> Embeddings:
        self._run_request.infer(_packed(tokens), share_inputs=True)
        embeddings: Embeddings = self._run_request.get_output_tensor(0).data
        return embeddings


def runs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of each run; together they hold every row once, shortest texts first."""
    rows: list[int] = []
    total = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        empty_places = len(rows) * length - total
        if rows and (total + length > RUN_TOKENS_MAX or empty_places > EMPTY_PLACES_MAX):
            yield rows
            rows, total = [], 0
        rows.append(row)
        total += length
    if rows:
        yield rows


def rounded_up(count: int) -> int:
    """To a multiple of 8, beyond 128 to one of 8 steps per doubling: few numbers, little waste."""
    step = max(8, 1 << (count - 1).bit_length() >> 4)
    return -(-count // step) * step


def _packed(tokens: Sequence[Tokens]) -> list[npt.NDArray[Any]]:
    """The graph's inputs; its tokens are filled up with some that no text refers to."""
    lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
    longest = np.arange(-(-int(lengths.max()) // 8) * 8, dtype=np.int32)
    used = longest < lengths[:, None]
    count = int(lengths.sum())
    ids, positions, places = np.zeros((3, rounded_up(count)), np.int32)
    ids[:count] = np.concatenate(tokens)
    positions[:count] = np.broadcast_to(longest, used.shape)[used]
    places[:count] = np.flatnonzero(used)
    grid = np.zeros(used.shape, np.int32)
    grid[used] = np.arange(count)
    return [ids, positions, grid, used.astype(np.float32), places]

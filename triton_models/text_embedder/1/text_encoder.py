"""The encoder of texts in one process: it tokenises, packs, and runs the OpenVINO graph."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from text_tokenizer import TextTokenizer, Tokens

# More tokens in one run are no faster, fewer are slower: the weights are read from memory once per run.
RUN_TOKENS_MAX = 512
RUN_TOKENS_MIN = 64
# A run costs about as much as attention does over this many empty places of its grid.
EMPTY_PLACES_MAX = 256

Embeddings = npt.NDArray[np.float32]


class TextEncoder:
    """Embeds texts; not to be shared between threads.

    A small batch is one run on all cores. A larger one is cut into runs of one core each: threads that work on
    one run wait for each other at every layer, which costs a third of the time where other processes run too.
    """

    def __init__(self, folder: Path) -> None:
        settings: dict[str, Any] = json.loads((folder / "settings.json").read_bytes())
        self.dimension: int = settings["dimension"]
        self.tokenizer = TextTokenizer(folder)
        self.max_tokens = self.tokenizer.max_tokens
        self._cores: int = settings["threads"] or len(os.sched_getaffinity(0))
        # So many tokens keep all cores busy; more would only wait.
        self.parallel_tokens = RUN_TOKENS_MAX * self._cores
        core = ov.Core()
        # Without the instructions bfloat16 is emulated, which is slower than float32.
        precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        model = core.read_model(folder / "encoder.xml")

        def compiled(streams: int) -> ov.CompiledModel:
            options = {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": self._cores,
                "NUM_STREAMS": streams,
            }
            return core.compile_model(model, "CPU", options)

        self._on_all_cores = compiled(1).create_infer_request()
        self._on_one_core_each = ov.AsyncInferQueue(compiled(self._cores), self._cores)
        self.description = f"OpenVINO {precision}, {self._cores} cores, {self.max_tokens} tokens at most"

    def warm_up(self) -> None:
        """Run every number of tokens that `_packed` may give: each costs OpenVINO 3 to 5 ms the first time."""
        count = 0
        while (count := rounded_up(count + 1)) <= max(RUN_TOKENS_MAX, self.max_tokens):
            texts, remainder = divmod(count, 8)
            inputs = _packed([[0] * 8] * texts + [[0] * remainder] * (remainder > 0))
            if count <= max(RUN_TOKENS_MIN * self._cores, self.max_tokens):
                self._on_all_cores.infer(inputs)
            if count >= RUN_TOKENS_MIN:
                for _ in range(self._cores):
                    self._on_one_core_each.start_async(inputs)
                self._on_one_core_each.wait_all()

    def embed(self, texts: Sequence[bytes]) -> Embeddings:
        """Return float32 [n, dimension]; row i belongs to texts[i]."""
        return self.embed_tokens(self.tokenizer.tokenize(texts))

    def embed_tokens(self, tokens: Sequence[Tokens]) -> Embeddings:
        embeddings = np.empty((len(tokens), self.dimension), np.float32)
        lengths = [len(ids) for ids in tokens]
        parallel = list(runs(lengths, self._cores))
        longest = max((sum(lengths[row] for row in rows) for rows in parallel), default=0)
        # One run on one core must not outlast what all of them need together on all cores.
        if len(parallel) >= self._cores > 1 and longest * self._cores <= 1.5 * sum(lengths):

            def answer(request: Any, rows: list[int]) -> None:
                embeddings[rows] = request.get_output_tensor(0).data

            self._on_one_core_each.set_callback(answer)
            for rows in parallel:
                self._on_one_core_each.start_async(_packed([tokens[row] for row in rows]), rows)
            self._on_one_core_each.wait_all()
        else:
            for rows in runs(lengths, 1):
                self._on_all_cores.infer(_packed([tokens[row] for row in rows]), share_inputs=True)
                embeddings[rows] = self._on_all_cores.get_output_tensor(0).data
        return embeddings


def runs(lengths: Sequence[int], cores: int) -> Iterator[list[int]]:
    """Rows of each run, even shares of the tokens; together they hold every row once, shortest texts first."""
    total = sum(lengths)
    rounds = -(-total // (RUN_TOKENS_MAX * cores))
    share = max(RUN_TOKENS_MIN, -(-total // max(1, rounds * cores)))
    rows: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        empty_places = len(rows) * length - tokens
        if rows and (
            tokens + length / 2 > share or tokens + length > RUN_TOKENS_MAX or empty_places > EMPTY_PLACES_MAX
        ):
            yield rows
            rows, tokens = [], 0
        rows.append(row)
        tokens += length
    if rows:
        yield rows


def rounded_up(count: int) -> int:
    """Round up to a multiple of 8, beyond 128 to one of 8 steps per doubling: few numbers, little waste."""
    step = max(8, 1 << (count - 1).bit_length() >> 4)
    return -(-count // step) * step


def _packed(tokens: Sequence[Tokens]) -> list[npt.NDArray[Any]]:
    """Return the graph's inputs, filled up with tokens that no text refers to."""
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

"""The padding of token ids of unequal lengths to one grid."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LENGTH_MIN = 16

Grid = npt.NDArray[np.int32]


def padded(tokens: Sequence[Sequence[int]], max_tokens: int) -> tuple[Grid, Grid]:
    """Return input_ids and attention_mask, both [texts, length]; the length is the longest text's, rounded up.

    Triton joins only requests of equal shapes into one batch, so there must be few lengths.
    """
    lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
    used = np.arange(rounded_up(int(lengths.max()), max_tokens)) < lengths[:, None]
    ids = np.zeros(used.shape, np.int32)
    ids[used] = np.concatenate(tokens)
    return ids, used.astype(np.int32)


def rounded_up(length: int, max_tokens: int) -> int:
    """Round up to 16, 32, 48, 64, then in two steps per doubling (96, 128, 192, 256, ..), up to `max_tokens`."""
    step = max(LENGTH_MIN, 1 << (length - 1).bit_length() >> 2)
    return min(-(-length // step) * step, max_tokens)

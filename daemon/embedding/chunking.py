"""Cutting a long text into chunks that the model can take, at ends of sentences where they fit."""

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from daemon.errors import ConfigError
from daemon.settings import ChunkingSettings

Span = tuple[int, int]
"""Start and end of one token in the text, in characters."""

_SENTENCE_END = re.compile(r"[.!?…。！？]['\"”’)\]]*\s|\n")


def chunks(text: str, spans: Sequence[Span], tokens_max: int, tokens_overlap: int) -> list[str]:
    """Cut a text so that no chunk has more than `tokens_max` of its tokens, and none of them is left out.

    A chunk ends with a sentence if one ends in its second half; else it is full. The next begins
    `tokens_overlap` tokens before that end.

    Args:
        text: to cut.
        spans: of its tokens, in order.
        tokens_max: at least 1.
        tokens_overlap: at most half of tokens_max.
    """
    if len(spans) <= tokens_max:
        return [text]
    pieces = []
    first = 0
    while True:
        last = min(first + tokens_max, len(spans))
        if last < len(spans):
            last = _sentence_end(text, spans, first + (tokens_max + 1) // 2, last)
        pieces.append(text[spans[first][0] : spans[last - 1][1]])
        if last == len(spans):
            return pieces
        first = max(last - tokens_overlap, first + 1)


def _sentence_end(text: str, spans: Sequence[Span], least: int, most: int) -> int:
    """Return the largest count of tokens in least..most after which a sentence ends; `most` if none does."""
    for count in range(most, least - 1, -1):
        # The end mark is its own token or the last one's tail; what follows it lies before the next token.
        if _SENTENCE_END.search(text, spans[count - 1][0], spans[count][0] + 1):
            gap = text[spans[count - 1][1] - 1 : spans[count][0]]
            if _SENTENCE_END.match(gap) or "\n" in gap:
                return count
    return most


def load_tokenizer(path: str, setting: str) -> Any:
    """Load a model's tokenizer, which then neither truncates nor pads.

    Args:
        path: of its tokenizer.json.
        setting: that names the path, for the message.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ConfigError(
            f"{setting} {path!r} cannot be read ({error}); name the tokenizer.json of the model"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Chunker:
    """Cuts texts by the settings of a pipeline; one chunk where chunking is off."""

    def __init__(self, settings: ChunkingSettings) -> None:
        self._tokens_max = settings.tokens_max
        self._tokens_overlap = settings.tokens_overlap
        enabled = settings.tokens_max > 0
        self._tokenizer = load_tokenizer(settings.tokenizer, "chunking.tokenizer") if enabled else None

    def __call__(self, text: str) -> Sequence[str]:
        if self._tokenizer is None:
            return (text,)
        spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return chunks(text, spans, self._tokens_max, self._tokens_overlap)

"""Cutting a long text into chunks that the model can take, at ends of sentences where they fit."""

import re
from collections.abc import Sequence

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
    """The largest count of tokens in least..most after which a sentence ends; `most` if none does."""
    for count in range(most, least - 1, -1):
        # The end mark is its own token or the last one's tail; what follows it lies before the next token.
        if _SENTENCE_END.search(text, spans[count - 1][0], spans[count][0] + 1):
            gap = text[spans[count - 1][1] - 1 : spans[count][0]]
            if _SENTENCE_END.match(gap) or "\n" in gap:
                return count
    return most

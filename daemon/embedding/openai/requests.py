"""Texts in requests that an OpenAI-compatible server takes: cut to what the model reads, so many in one request."""

import asyncio
from collections.abc import Sequence
from typing import Any

from daemon.embedding.chunking import load_tokenizer

_BYTES_PER_TOKEN = 2
"""Of UTF-8, for a model whose tokenizer is not named. Prose in any major language has 2.6 to 4.8 with OpenAI's
cl100k; only hexadecimal, emoji and rare scripts have fewer than 2."""


class RequestCutter:
    """Cuts texts to the model's length, and lists of texts to requests.

    Args:
        texts_max: texts in one request.
        request_tokens_max: tokens of all texts in one request; a text above it goes alone.
        text_tokens_max: tokens that a text is cut to; 0: it is sent whole.
        tokenizer: path of the model's tokenizer.json; empty: tokens are estimated from bytes, conservatively.
    """

    def __init__(
        self, texts_max: int, request_tokens_max: int, text_tokens_max: int, tokenizer: str = ""
    ) -> None:
        self._texts_max = texts_max
        self._request_tokens_max = request_tokens_max
        self._text_tokens_max = text_tokens_max
        self._tokenizer = load_tokenizer(tokenizer, "embedding.tokenizer") if tokenizer else None
        self._special = self._tokenizer.num_special_tokens_to_add(False) if self._tokenizer else 0

    async def requests(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the texts in their order, as requests; each text as it is sent."""
        sizes_bytes = [len(text.encode("utf-8", "replace")) for text in texts]
        # No tokenizer gives more tokens than bytes, so that most calls need no look at their texts.
        # (A special token at either end is the exception, and small beside what is left of a limit of requests.)
        fits = not self._text_tokens_max or max(sizes_bytes) + self._special <= self._text_tokens_max
        if fits and len(texts) <= self._texts_max and sum(sizes_bytes) <= self._request_tokens_max:
            return [list(texts)]
        if self._tokenizer is None:
            return self._packed([self._cut_by_bytes(text) for text in texts])
        return self._packed(await asyncio.to_thread(self._cut_by_tokens, self._tokenizer, texts))

    def _packed(self, texts: Sequence[tuple[str, int]]) -> list[list[str]]:
        """Return requests as full as the limits allow, of texts with their tokens."""
        requests: list[list[str]] = []
        tokens = 0
        for text, text_tokens in texts:
            too_many_tokens = tokens + text_tokens > self._request_tokens_max
            if not requests or len(requests[-1]) >= self._texts_max or too_many_tokens:
                requests.append([])
                tokens = 0
            requests[-1].append(text)
            tokens += text_tokens
        return requests

    def _cut_by_bytes(self, text: str) -> tuple[str, int]:
        data = text.encode("utf-8", "replace")
        most = self._text_tokens_max * _BYTES_PER_TOKEN
        if most and len(data) > most:
            data = data[:most]
            text = data.decode("utf-8", "ignore")  # The cut may be inside a character.
        return text, -(-len(data) // _BYTES_PER_TOKEN)

    def _cut_by_tokens(self, tokenizer: Any, texts: Sequence[str]) -> list[tuple[str, int]]:
        most = self._text_tokens_max - self._special
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        cut = []
        for text, encoding in zip(texts, encodings, strict=True):
            room = most
            spans = encoding.offsets
            # A text that is cut inside a word may have more tokens than it had up to there.
            while self._text_tokens_max and len(spans) > most and room > 0:
                text = text[: spans[room - 1][1]]
                spans = tokenizer.encode(text, add_special_tokens=False).offsets
                room -= 1
            cut.append((text, len(spans) + self._special))
        return cut

"""The model's tokenizer, for cutting texts as the model will count them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from daemon.core.chunking import chunks
from daemon.errors import ConfigError
from daemon.settings import ChunkingSettings


class Chunker:
    """Cuts texts by the settings of a pipeline; one chunk where chunking is off."""

    def __init__(self, settings: ChunkingSettings) -> None:
        self._tokens_max = settings.tokens_max
        self._tokens_overlap = settings.tokens_overlap
        self._tokenizer: Any = None
        if settings.tokens_max:
            path = Path(settings.tokenizer)
            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:
                raise ConfigError(
                    f"chunking.tokenizer {str(path)!r} cannot be read ({error}); name the tokenizer.json of the model"
                ) from error
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()

    def __call__(self, text: str) -> Sequence[str]:
        if self._tokenizer is None:
            return (text,)
        spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return chunks(text, spans, self._tokens_max, self._tokens_overlap)

"""The tokenizer, the same for the model on CPU and on GPU."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# A text is cut to this many bytes per allowed token before it is tokenised: tokenising 1 MB takes 0.2 s.
TEXT_BYTES_PER_TOKEN_MAX = 64

Tokens = Sequence[int]


class TextTokenizer:
    """Turns texts into token ids; the model's folder also names the prompts that it was trained with."""

    def __init__(self, folder: Path) -> None:
        settings: dict[str, Any] = json.loads((folder / "settings.json").read_bytes())
        self.max_tokens: int = settings["max_tokens"]
        self._prompts = {role: prompt.encode() for role, prompt in settings["prompts"].items()}
        self._text_bytes_max = self.max_tokens * TEXT_BYTES_PER_TOKEN_MAX
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)

    def prompted(self, texts: list[bytes], parameters: str) -> list[bytes]:
        """Put the prompt that a request's `parameters` (JSON) name before each text; KeyError for an unknown one."""
        prompt = self._prompts[json.loads(parameters or "{}").get("prompt", "document")]
        return [prompt + text for text in texts] if prompt else texts

    def tokenize(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Return at most `max_tokens` ids for each text; bytes that are not UTF-8 become U+FFFD."""
        decoded = [text[: self._text_bytes_max].decode("utf-8", "replace") for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(decoded)]

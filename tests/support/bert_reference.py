"""BERT's forward pass in plain numpy, float32, one text at a time: what the served model is measured against.

Written from the paper (Devlin et al. 2018) and the published tensors' names, and shares no code with
`triton_models`: not the reading of weights, nor padding, masks or batches.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = npt.NDArray[np.float32]


class BertReference:
    """`embed` gives [n, dimension], mean- or CLS-pooled and normalised."""

    def __init__(
        self, folder: Path, *, heads: int, max_tokens: int, pooling: str = "mean", epsilon: float = 1e-12
    ) -> None:
        self._tensors: dict[str, Array] = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._heads = heads
        self._pooling = pooling
        self._epsilon = epsilon
        layers = {name.split(".")[2] for name in self._tensors if name.startswith("encoder.layer.")}
        self._layers = len(layers)

    def embed(self, texts: list[str]) -> Array:
        return np.stack([self._embed(text) for text in texts])

    def token_counts(self, texts: list[str]) -> list[int]:
        return [len(self._tokenizer.encode(text).ids) for text in texts]

    def _embed(self, text: str) -> Array:
        ids = self._tokenizer.encode(text).ids
        t = self._tensors
        x = t["embeddings.word_embeddings.weight"][ids]
        x = x + t["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + t["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        for layer in range(self._layers):
            x = self._layer(x, f"encoder.layer.{layer}.")
        pooled = x[0] if self._pooling == "cls" else x.mean(axis=0)
        embedding: Array = pooled / np.linalg.norm(pooled)
        return embedding

    def _layer(self, x: Array, p: str) -> Array:
        heads = []
        size = x.shape[1] // self._heads
        query, key, value = (
            self._dense(x, f"{p}attention.self.{part}") for part in ("query", "key", "value")
        )
        for head in range(self._heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / np.sqrt(np.float32(size))
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, part])
        attended = self._dense(np.concatenate(heads, axis=1), p + "attention.output.dense")
        x = self._norm(x + attended, p + "attention.output.LayerNorm")
        inner = _gelu(self._dense(x, p + "intermediate.dense"))
        return self._norm(x + self._dense(inner, p + "output.dense"), p + "output.LayerNorm")

    def _dense(self, x: Array, name: str) -> Array:
        result: Array = x @ self._tensors[name + ".weight"].T + self._tensors[name + ".bias"]
        return result

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(self._epsilon))
        result: Array = scaled * self._tensors[name + ".weight"] + self._tensors[name + ".bias"]
        return result


def _gelu(x: Array) -> Array:
    """x Phi(x); erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7."""
    z = np.abs(x) / np.sqrt(np.float32(2))
    t = 1 / (1 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    result: Array = (x * 0.5 * (1 + erf)).astype(np.float32)
    return result


DIVERSE_TEXTS = [
    "a",
    "the",
    ".",
    "",
    "Dog",
    "42",
    "New York",
    "The quick brown fox jumps over the lazy dog.",
    "An animal that keeps watch over a house or a herd of sheep at night.",
    "PostgreSQL's write-ahead log is a sequence of records, each with its own log sequence number (LSN).",
    "SELECT id, title FROM articles WHERE updated_at > now() - interval '5 minutes' ORDER BY id;",
    "def embed(texts: list[str]) -> list[list[float]]:\n    return [model(text) for text in texts]",
    '{"id": 7, "tags": ["red", "blue"], "price": 12.50, "nested": {"deep": null}}',
    "https://example.org/path/to/page?query=vector+search&lang=en#fragment",
    "first.last+tag@example.org",
    "C'est la vie ; où êtes-vous allés, élèves du château ?",
    "Über die Straße fährt ein großer, blauer Bus nach Köln.",
    "El niño comió piñas en la montaña mientras llovía.",
    "Zażółć gęślą jaźń",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "السلام عليكم ورحمة الله وبركاته",
    "שלום עולם, זה טקסט מימין לשמאל",
    "left to right, then مرحبا بالعالم, then left again",
    "我们今天去公园散步，天气很好。",
    "東京タワーは夜になると美しく光ります。",
    "안녕하세요, 오늘 기분이 어떠세요?",
    "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรค",
    "नमस्ते दुनिया, यह एक परीक्षण है",
    "😀 😀 🎉 🚀 👩‍👩‍👧‍👦",
    "I ❤️ NY 🗽 and 🍕!!!",
    "🇩🇪🇫🇷🇯🇵",
    "e\u0301 combining versus \u00e9 composed",
    "zero\u200bwidth\u200djoiners\ufeffand a byte order mark",
    "tabs\tand\nnew\r\nlines   and     many      spaces",
    "a\x00b\x00NUL inside",
    "\u202eright-to-left override\u202c",
    "MiXeD cAsE LeTtErS eVeRyWhErE",
    "!!!???...,,,;;;:::---___***",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 99,
    "x" * 101,
    "0123456789" * 20,
    "∑ᵢ xᵢ² ≤ ∫₀¹ f(x) dx ≈ π ÷ 4",
    "Price: €1,234.56 (≈ $1,350.00), down −3.2 % since 2024‑01‑15T12:00:00Z",
    "King - man + woman = queen",
    "not good, not bad, not anything at all",
    "buffalo " * 40,
    "The committee adjourned without a decision. " * 12,
    "A long report about rivers, dams and the people who live beside them, told year by year. " * 20,
    "colourless green ideas sleep furiously " * 200,
    "很长的中文文本" * 100,
]

"""Whole sentence-transformers folders of small BERT-family models with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.support.bert_reference import BertReference
from triton_models.encoder_openvino import encoder_graph
from triton_models.source import read_source

HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 32, 2, 4, 64, 24
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(40))]
TEXTS = ["w1", "w1 w2 w3", "w5 w4 w3 w2 w1 w0", "w9 " * 50, "unknown words only"]


def write_model(folder: Path, *, prefix: str = "", positions: int = POSITIONS, **config: Any) -> Path:
    """A whole sentence-transformers folder; tensors are drawn wide enough that each one matters."""
    folder.mkdir()
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (positions, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **_pair("embeddings.LayerNorm", HIDDEN),
    }
    for layer in range(LAYERS):
        p = f"encoder.layer.{layer}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value"):
            shapes |= _pair(p + part, HIDDEN, HIDDEN)
        shapes |= _pair(p + "attention.output.dense", HIDDEN, HIDDEN)
        shapes |= _pair(p + "attention.output.LayerNorm", HIDDEN)
        shapes |= _pair(p + "intermediate.dense", INTERMEDIATE, HIDDEN)
        shapes |= _pair(p + "output.dense", HIDDEN, INTERMEDIATE)
        shapes |= _pair(p + "output.LayerNorm", HIDDEN)
    tensors = {
        prefix + name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()
    }
    tensors["embeddings.position_ids"] = np.arange(positions)[None]  # type: ignore[assignment]
    save_file(tensors, folder / "model.safetensors")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": positions,
        "layer_norm_eps": 1e-6,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def write_modules(folder: Path, *kinds: str) -> None:
    """modules.json, with each module's folder as sentence-transformers names it."""
    paths = {kind: "" if number == 0 else f"{number}_{kind}" for number, kind in enumerate(kinds)}
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in paths.items()]
    (folder / "modules.json").write_text(json.dumps(listed))


def write_pooling(folder: Path, **config: Any) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def write_prompts(folder: Path, **prompts: str) -> None:
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))


def tiny_reference(folder: Path, **settings: Any) -> BertReference:
    return BertReference(folder, heads=HEADS, max_tokens=POSITIONS, epsilon=1e-6, **settings)


def ragged_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """One ragged batch through the OpenVINO graph, in float32."""
    source = read_source(folder)
    tokenizer = Tokenizer.from_file(str(source.tokenizer))
    tokenizer.enable_truncation(source.max_tokens)
    tokens = [tokenizer.encode(text).ids for text in texts]
    grid = np.zeros((len(texts), max(map(len, tokens))), np.int32)
    mask = np.zeros(grid.shape, np.float32)
    ids, positions, places = list[int](), list[int](), list[int]()
    for row, row_ids in enumerate(tokens):
        for position, token in enumerate(row_ids):
            grid[row, position], mask[row, position] = len(ids), 1
            ids.append(token)
            positions.append(position)
            places.append(row * grid.shape[1] + position)
    model = ov.compile_model(encoder_graph(source), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    flat = {"ids": ids, "positions": positions, "places": places}
    inputs = {name: np.array(values, np.int32) for name, values in flat.items()}
    result: np.ndarray = model(inputs | {"grid": grid, "mask": mask})[0]
    return result

"""Other BERT-family models than the packaged one: small ones with random weights, built and compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.tiny_model import (
    HIDDEN,
    LAYERS,
    POSITIONS,
    TEXTS,
    ragged_vectors,
    tiny_reference,
    write_model,
    write_modules,
    write_pooling,
)
from triton_models import ModelSourceError, build_repository
from triton_models.source import read_source
from triton_models.weights import read_safetensors


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_is_the_model_s_own(config: dict[str, Any], pooling: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_modules(folder, "Transformer", "Pooling", "Normalize")
    write_pooling(folder, **config)
    np.testing.assert_allclose(
        ragged_vectors(folder, TEXTS), tiny_reference(folder, pooling=pooling).embed(TEXTS), atol=1e-4
    )


def test_a_model_without_a_normalize_module_is_not_normalised(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_modules(folder, "Transformer", "Pooling")
    write_pooling(folder, pooling_mode_mean_tokens=True)
    embeddings = ragged_vectors(folder, TEXTS)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert np.abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(embeddings / lengths, tiny_reference(folder).embed(TEXTS), atol=1e-4)


def test_tensors_of_a_model_with_a_head_are_found_behind_their_prefix(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain")
    headed = write_model(tmp_path / "headed", prefix="bert.")
    np.testing.assert_array_equal(ragged_vectors(headed, TEXTS), ragged_vectors(plain, TEXTS))


def test_roberta_positions_begin_after_the_padding_s(tmp_path: Path) -> None:
    """xlm-roberta with pad_token_id 1 reads position 2 first: as BERT without the first two rows does."""
    config = {"model_type": "xlm-roberta", "pad_token_id": 1}
    folder = write_model(tmp_path / "model", prefix="roberta.", positions=POSITIONS, **config)
    tensors = read_safetensors(folder / "model.safetensors")
    as_bert = {name.removeprefix("roberta."): values for name, values in tensors.items()}
    positions = "embeddings.position_embeddings.weight"
    as_bert[positions] = np.ascontiguousarray(as_bert[positions][2:])
    bert = write_model(tmp_path / "bert", positions=POSITIONS - 2)
    save_file(as_bert, bert / "model.safetensors")
    assert read_source(folder).max_tokens == POSITIONS - 2
    np.testing.assert_allclose(ragged_vectors(folder, TEXTS), ragged_vectors(bert, TEXTS), atol=1e-5)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_weights_give_nearly_the_same_vectors(dtype: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    full = ragged_vectors(folder, TEXTS)
    tensors = read_safetensors(folder / "model.safetensors")
    if dtype == "F16":
        save_file(
            {name: values.astype(np.float16) for name, values in tensors.items()},
            folder / "model.safetensors",
        )
    else:
        _save_bfloat16(tensors, folder / "model.safetensors")
    half = ragged_vectors(folder, TEXTS)
    assert not np.array_equal(full, half)
    assert (full * half).sum(axis=1).min() >= 0.999


def _save_bfloat16(tensors: dict[str, Any], path: Path) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        halves = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": values.shape,
            "data_offsets": [len(data), len(data) + len(halves)],
        }
        data += halves
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_prompts_and_the_token_limit_reach_the_model_s_settings(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    prompts = {"query": "query: ", "passage": "passage: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    build_repository(folder, tmp_path / "models", name="small")
    settings = json.loads((tmp_path / "models" / "small" / "1" / "settings.json").read_text())
    assert settings["prompts"] == {"document": "passage: ", "query": "query: "}
    assert (settings["dimension"], settings["max_tokens"]) == (HIDDEN, 16)


def test_a_token_limit_beyond_the_positions_is_cut_to_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert read_source(folder).max_tokens == POSITIONS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mpnet"}, "'mpnet' model"),
        ({"hidden_act": "silu"}, "activation 'silu'"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
        ({"num_hidden_layers": LAYERS + 1}, r"encoder\.layer\.2"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", **config)
    with pytest.raises(ModelSourceError, match=message):
        build_repository(folder, tmp_path / "models")
    assert not (tmp_path / "models" / "text_embedder").exists()


def test_a_module_after_pooling_that_would_change_the_vectors_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_modules(folder, "Transformer", "Pooling", "Dense")
    with pytest.raises(ModelSourceError, match="Dense"):
        read_source(folder)


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_pooling(folder, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True)
    with pytest.raises(ModelSourceError, match="max_tokens"):
        read_source(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(ModelSourceError, match=missing):
        read_source(folder)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelSourceError, match="download it again"):
        build_repository(folder, tmp_path / "models")


def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    with pytest.raises(ModelSourceError, match="cannot name"):
        build_repository(folder, tmp_path / "models", name="../elsewhere")

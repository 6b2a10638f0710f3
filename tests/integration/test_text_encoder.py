"""The text embedder in this process: its build, and its vectors against an independent reference."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from tests.support.bert_reference import DIVERSE_TEXTS, BertReference
from triton_models import ModelSourceError, build_repository, packaged_weights
from triton_models.check import served_module

MAX_TOKENS = 256


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    build_repository(packaged_weights(), out)
    return out


@pytest.fixture(scope="module")
def encoder_module(repository: Path) -> ModuleType:
    return served_module(repository / "text_embedder" / "1" / "text_encoder.py")


@pytest.fixture(scope="module")
def encoder(repository: Path, encoder_module: ModuleType) -> Any:
    return encoder_module.TextEncoder(repository / "text_embedder" / "1")


@pytest.fixture(scope="module")
def reference() -> BertReference:
    return BertReference(packaged_weights(), heads=12, max_tokens=MAX_TOKENS)


def _embed(encoder: Any, texts: list[str]) -> np.ndarray:
    embeddings: np.ndarray = encoder.embed([text.encode() for text in texts])
    return embeddings


def test_vectors_equal_the_reference_in_one_ragged_batch(encoder: Any, reference: BertReference) -> None:
    embeddings = _embed(encoder, DIVERSE_TEXTS)
    cosines = (embeddings * reference.embed(DIVERSE_TEXTS)).sum(axis=1)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (len(DIVERSE_TEXTS), 384)
    worst = int(cosines.argmin())
    assert cosines[worst] >= 0.999, f"text {worst} has cosine {cosines[worst]}"
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3)


def test_a_vector_does_not_depend_on_its_neighbours(encoder: Any) -> None:
    together = _embed(encoder, DIVERSE_TEXTS)
    alone = np.concatenate([_embed(encoder, [text]) for text in DIVERSE_TEXTS])
    assert (together * alone).sum(axis=1).min() >= 0.9999


def test_the_reference_tells_texts_apart(reference: BertReference) -> None:
    embeddings = reference.embed(["a small dog", "the stock market fell"])
    assert embeddings[0] @ embeddings[1] < 0.5


def test_no_bytes_are_refused(encoder: Any) -> None:
    texts = [b"", b"\x00", b"\xff\xfe\xfa", b"ok \xc3", b"\xed\xa0\x80 lone surrogate", b"\xf0\x9f\x98"]
    embeddings = encoder.embed(texts)
    assert np.isfinite(embeddings).all()
    decoded = [text.decode("utf-8", "replace") for text in texts]
    assert (embeddings * _embed(encoder, decoded)).sum(axis=1).min() >= 0.9999


@pytest.mark.parametrize("unit", ["word ", "漢字", "x", "    ", "a.b", "\u0301"])
def test_a_text_of_1_mb_gives_the_vector_of_its_beginning(
    unit: str, encoder: Any, reference: BertReference
) -> None:
    long = unit * (1_000_000 // len(unit.encode()))
    embedding = _embed(encoder, [long])[0]
    assert embedding @ reference.embed([long])[0] >= 0.999, f"{reference.token_counts([long])[0]} tokens"


def test_what_lies_beyond_the_token_limit_changes_nothing(encoder: Any) -> None:
    kept = "river " * MAX_TOKENS
    embeddings = _embed(encoder, [kept, kept + "and then a volcano " * 10_000])
    assert embeddings[0] @ embeddings[1] >= 0.9999


@given(lengths=st.lists(st.integers(2, MAX_TOKENS), max_size=200), cores=st.integers(1, 8))
def test_runs_hold_every_row_once_within_their_limits(
    lengths: list[int], cores: int, encoder_module: ModuleType
) -> None:
    runs = list(encoder_module.runs(lengths, cores))
    assert sorted(row for rows in runs for row in rows) == list(range(len(lengths)))
    for rows in runs:
        used = [lengths[row] for row in rows]
        assert sum(used) <= encoder_module.RUN_TOKENS_MAX
        assert len(used) * max(used) - sum(used) <= encoder_module.EMPTY_PLACES_MAX + max(used)


@pytest.mark.parametrize(
    ("texts", "cores", "sizes"),
    [
        (1, 2, [1]),
        (4, 2, [4]),
        (14, 2, [7, 7]),
        (64, 2, [32, 32]),
        (70, 2, [18, 18, 18, 16]),
        (64, 1, [32, 32]),
        (12, 8, [4, 4, 4]),
    ],
)
def test_texts_of_16_tokens_are_shared_evenly(
    texts: int, cores: int, sizes: list[int], encoder_module: ModuleType
) -> None:
    assert [len(rows) for rows in encoder_module.runs([16] * texts, cores)] == sizes


@given(count=st.integers(1, 5000))
def test_token_counts_are_rounded_to_few_numbers_with_little_waste(
    count: int, encoder_module: ModuleType
) -> None:
    rounded = encoder_module.rounded_up(count)
    assert count <= rounded <= max(count + 7, count * 9 / 8)
    assert encoder_module.rounded_up(rounded) == rounded


def test_the_configuration_is_triton_s_and_names_the_space(repository: Path) -> None:
    config = model_config_pb2.ModelConfig()
    text_format.Parse((repository / "text_embedder" / "config.pbtxt").read_text(), config)
    assert config.name == "text_embedder"
    assert config.max_batch_size == 500
    assert list(config.output[0].dims) == [384]
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.parameters["dimension"].string_value == "384"
    assert config.parameters["max_tokens"].string_value == str(MAX_TOKENS)
    assert len(config.parameters["fingerprint"].string_value) == 32


def test_a_second_build_touches_nothing(repository: Path) -> None:
    before = _state(repository)
    build_repository(packaged_weights(), repository)
    assert _state(repository) == before


def test_a_build_replaces_an_older_one_and_leaves_nothing_beside_it(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    shutil.copytree(repository, out)
    settings = out / "text_embedder" / "1" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"build": "older"}))
    (out / "text_embedder" / "1" / "of_an_older_version").touch()
    (tmp_path / ".models-build-killed").mkdir()
    build_repository(packaged_weights(), out)
    assert json.loads(settings.read_text())["build"] != "older"
    assert not (out / "text_embedder" / "1" / "of_an_older_version").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"models", ".models-build.lock"}
    assert [path.name for path in out.iterdir()] == ["text_embedder"]


def test_a_failed_build_leaves_the_old_model(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    shutil.copytree(repository, out)
    before = _state(out)
    broken = _copy_of_weights(tmp_path / "broken")
    (broken / "config.json").write_text(_changed(broken / "config.json", num_hidden_layers=7))
    with pytest.raises(ModelSourceError, match=r"encoder\.layer\.6"):
        build_repository(broken, out)
    assert _state(out) == before


def test_the_fingerprint_names_the_embedding_space(tmp_path: Path) -> None:
    """Same weights, other limit: the vectors of long texts may not be compared."""
    shorter = _copy_of_weights(tmp_path / "shorter")
    (shorter / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    fingerprints = set()
    for source in (packaged_weights(), shorter):
        build_repository(source, tmp_path / "models")
        settings = json.loads((tmp_path / "models" / "text_embedder" / "1" / "settings.json").read_text())
        fingerprints.add(settings["fingerprint"])
    assert len(fingerprints) == 2


def _copy_of_weights(folder: Path) -> Path:
    """The packaged model in a folder of its own; the weights are a link."""
    source = packaged_weights()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    os.symlink(source / "model.safetensors", folder / "model.safetensors")
    return folder


def _changed(path: Path, **values: object) -> str:
    return json.dumps(json.loads(path.read_text()) | values)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}

"""The model for a GPU, as far as it can be checked without one: its graph on CPU, its configurations as Triton's."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

from daemon.embedding.triton.embedder import _space_of
from tests.support.bert_reference import DIVERSE_TEXTS, BertReference
from tests.support.tiny_model import (
    HEADS,
    HIDDEN,
    POSITIONS,
    TEXTS,
    ragged_vectors,
    tiny_reference,
    write_model,
    write_modules,
    write_pooling,
    write_prompts,
)
from triton_models import (
    GpuOptions,
    ModelSourceError,
    build_model,
    encoder_onnx,
    packaged_weights,
    read_source,
)
from triton_models.check import check_model, served_module
from triton_models.encoder_onnx import Precision, onnx_model
from triton_models.weights import read_safetensors

COSINE_MIN: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999}
LONG = "A long report about rivers, dams and the people who live beside them, told year by year. " * 30
EVERY_LENGTH = ["", *DIVERSE_TEXTS[1:40:8], LONG]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "models"
    build_model(read_source(packaged_weights()), out, device="gpu")
    return out


@pytest.fixture(scope="module")
def padding(repository: Path) -> ModuleType:
    return served_module(repository / "text_embedder_tokenizer" / "1" / "padding.py")


@pytest.fixture(scope="module")
def long_texts_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with all of its 512 positions; published, it stops at 256."""
    folder = tmp_path_factory.mktemp("weights") / "minilm"
    source = packaged_weights()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    os.symlink(source / "model.safetensors", folder / "model.safetensors")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    return folder


@pytest.fixture(scope="module")
def expected_vectors(long_texts_model: Path) -> np.ndarray:
    return BertReference(long_texts_model, heads=12, max_tokens=512).embed(EVERY_LENGTH)


def config_of(folder: Path) -> Any:
    """Refuses what Triton would refuse: an unknown field, a wrong type."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tokens_of(folder: Path, texts: list[str]) -> list[list[int]]:
    source = read_source(folder)
    tokenizer = Tokenizer.from_file(str(source.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(source.max_tokens)
    return [tokenizer.encode(text).ids for text in texts]


def grid(tokens: list[list[int]], filler: int) -> dict[str, np.ndarray]:
    """One batch; `filler` stands where a text has ended, and must not matter."""
    mask = np.arange(max(map(len, tokens))) < np.array([len(ids) for ids in tokens])[:, None]
    ids = np.full(mask.shape, filler, np.int32)
    ids[mask] = np.concatenate(tokens)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int32)}


def embed(folder: Path, texts: list[str], precision: Precision = "fp32", *, filler: int = 7) -> np.ndarray:
    model = onnx_model(read_source(folder), precision)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["EMBEDDING"], grid(tokens_of(folder, texts), filler))
    assert vectors.dtype == np.float32
    result: np.ndarray = vectors
    return result


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_vectors_equal_the_reference_in_one_batch_of_every_length(
    precision: Precision, long_texts_model: Path, expected_vectors: np.ndarray
) -> None:
    counts = [len(ids) for ids in tokens_of(long_texts_model, EVERY_LENGTH)]
    assert (min(counts), max(counts)) == (2, 512)
    vectors = embed(long_texts_model, EVERY_LENGTH, precision)
    cosines = (vectors * expected_vectors).sum(axis=1)
    assert cosines.min() >= COSINE_MIN[precision], f"text {int(cosines.argmin())} has {cosines.min()}"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    np.testing.assert_allclose(embed(folder, TEXTS, filler=9), embed(folder, TEXTS, filler=3), atol=1e-6)
    alone = np.concatenate([embed(folder, [text]) for text in TEXTS])
    np.testing.assert_allclose(embed(folder, TEXTS), alone, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pooling_is_the_model_s_own(pooling: str, precision: Precision, tmp_path: Path) -> None:
    """As BGE has the one, and E5, GTE and MiniLM the other."""
    folder = write_model(tmp_path / "model")
    write_modules(folder, "Transformer", "Pooling", "Normalize")
    write_pooling(folder, pooling_mode_cls_token=pooling == "cls", pooling_mode_mean_tokens=pooling == "mean")
    cosines = (embed(folder, TEXTS, precision) * tiny_reference(folder, pooling=pooling).embed(TEXTS)).sum(
        axis=1
    )
    assert cosines.min() >= COSINE_MIN[precision]


def test_float16_all_the_way_keeps_the_space(tmp_path: Path) -> None:
    """ONNX Runtime computes float16 in float32 on CPU; the reference evaluator rounds after every operator."""
    folder = write_model(tmp_path / "model")
    evaluator = ReferenceEvaluator(onnx_model(read_source(folder), "fp16"))
    (vectors,) = evaluator.run(["EMBEDDING"], grid(tokens_of(folder, TEXTS), 7))
    assert (vectors * tiny_reference(folder).embed(TEXTS)).sum(axis=1).min() >= COSINE_MIN["fp16"]


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"model_type": "xlm-roberta", "pad_token_id": 1},
    ],
)
def test_both_encoders_are_the_same_model(config: dict[str, Any], tmp_path: Path) -> None:
    """Two graphs, written apart from one another, for two runtimes."""
    folder = write_model(tmp_path / "model", **config)
    plain = write_model(tmp_path / "plain")
    vectors = embed(folder, TEXTS)
    assert np.abs(vectors - embed(plain, TEXTS)).max() > 5e-5
    np.testing.assert_allclose(vectors, ragged_vectors(folder, TEXTS), atol=5e-6)
    for comparison in check_model(read_source(folder)):
        assert comparison.passed, comparison


def test_a_model_without_a_normalize_module_is_not_normalised(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_modules(folder, "Transformer", "Pooling")
    write_pooling(folder, pooling_mode_mean_tokens=True)
    vectors = embed(folder, TEXTS)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(vectors / lengths, tiny_reference(folder).embed(TEXTS), atol=1e-4)


def test_a_weight_beyond_float16_is_refused_for_gpu_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tensors = {name: values.copy() for name, values in read_safetensors(folder / "model.safetensors").items()}
    tensors["encoder.layer.1.output.dense.weight"][3, 5] = 1e5
    save_file(tensors, folder / "model.safetensors")
    model = read_source(folder)
    with pytest.raises(ModelSourceError, match=r"encoder\.layer\.1\.output\.dense\.weight.*build it for CPU"):
        build_model(model, tmp_path / "models", device="gpu")
    build_model(model, tmp_path / "models", device="cpu")


def test_weights_beyond_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_source(write_model(tmp_path / "model"))
    in_half = sum(len(tensor.raw_data) for tensor in onnx_model(model, "fp16").graph.initializer)
    monkeypatch.setattr(encoder_onnx, "WEIGHTS_BYTES_MAX", in_half)
    build_model(model, tmp_path / "models", device="gpu")
    with pytest.raises(ModelSourceError, match="over 2 GiB of weights in fp32"):
        onnx_model(model, "fp32")


def test_the_steps_of_the_ensemble_fit_each_other(repository: Path) -> None:
    ensemble = config_of(repository / "text_embedder")
    assert ensemble.platform == "ensemble"
    known = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        config = config_of(repository / step.model_name)
        assert config.name == step.model_name
        assert config.max_batch_size >= ensemble.max_batch_size == 500
        assert set(step.input_map) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            assert known[step.input_map[tensor.name]] == (tensor.data_type, list(tensor.dims))
        outputs = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in config.output}
        known |= {step.output_map[name]: outputs[name] for name in step.output_map}
    for tensor in ensemble.output:
        assert known[tensor.name] == (tensor.data_type, list(tensor.dims))


def test_the_encoder_s_configuration_fits_its_graph(repository: Path) -> None:
    config = config_of(repository / "text_embedder_encoder")
    graph = onnx.load(
        repository / "text_embedder_encoder" / "1" / config.default_model_filename, load_external_data=False
    ).graph
    types = {
        model_config_pb2.TYPE_INT32: onnx.TensorProto.INT32,
        model_config_pb2.TYPE_FP32: onnx.TensorProto.FLOAT,
    }
    for configured, values in ((config.input, graph.input), (config.output, graph.output)):
        declared = {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        }
        assert declared == {
            tensor.name: (types[tensor.data_type], [-1, *tensor.dims]) for tensor in configured
        }
    weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
    assert weights == {onnx.TensorProto.FLOAT16}


def test_the_engine_s_shapes_hold_whatever_the_tokenizer_gives(repository: Path, padding: ModuleType) -> None:
    config = config_of(repository / "text_embedder_encoder")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP16"
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]

    def shapes(which: str) -> dict[str, list[int]]:
        listed = accelerator.parameters[f"trt_profile_{which}_shapes"].split(",")
        return {
            name: [int(size) for size in shape.split("x")] for name, shape in (e.split(":") for e in listed)
        }

    smallest, tuned, largest = shapes("min"), shapes("opt"), shapes("max")
    for tensor in config.input:
        assert smallest[tensor.name] == [1, 1]
        assert largest[tensor.name] == [config.max_batch_size, 256]
        assert all(
            a <= b <= c for a, b, c in zip(*(s[tensor.name] for s in (smallest, tuned, largest)), strict=True)
        )
    assert max(padding.rounded_up(length, 256) for length in range(1, 257)) == 256
    assert max(config.dynamic_batching.preferred_batch_size) <= config.max_batch_size


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_padding_keeps_every_token_and_gives_few_lengths(lengths: list[int], padding: ModuleType) -> None:
    tokens = [list(range(1, length + 1)) for length in lengths]
    ids, mask = padding.padded(tokens, 500)
    assert ids.dtype == mask.dtype == np.int32
    assert [list(row[kept == 1]) for row, kept in zip(ids, mask, strict=True)] == tokens
    assert ids.shape[1] in {16, 32, 48, 64, 96, 128, 192, 256, 384, 500}
    assert ids.shape[1] <= max(16, 2 * max(lengths))


def test_both_devices_serve_one_space_under_one_name(repository: Path, tmp_path: Path) -> None:
    """So that going from one to the other asks for no reindex."""
    build_model(read_source(packaged_weights()), tmp_path / "models", device="cpu")
    spaces = {
        _space_of(config_of(models / "text_embedder"), "") for models in (repository, tmp_path / "models")
    }
    (space,) = spaces
    assert (space.model, space.dimension, space.max_tokens) == ("text_embedder", 384, 256)
    assert len(space.fingerprint) == 32


def test_other_prompts_are_another_space(tmp_path: Path) -> None:
    """E5: the same text, asked for with another prefix, gives another vector."""
    folder = write_model(tmp_path / "model")
    write_prompts(folder, query="query: ", passage="passage: ")
    e5 = read_source(folder)
    assert (e5.document_prompt, e5.query_prompt) == ("passage: ", "query: ")
    given_by_hand = read_source(folder, document_prompt="", query_prompt="")
    assert (given_by_hand.document_prompt, given_by_hand.query_prompt) == ("", "")
    assert e5.fingerprint() != given_by_hand.fingerprint()
    build_model(e5, tmp_path / "models", device="gpu", name="e5")
    settings = json.loads((tmp_path / "models" / "e5_tokenizer" / "1" / "settings.json").read_text())
    assert settings["prompts"] == {"document": "passage: ", "query": "query: "}


def engine_prefix(repository: Path, name: str = "text_embedder") -> str:
    config = config_of(repository / f"{name}_encoder")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    return str(accelerator.parameters["trt_engine_cache_prefix"])


def test_no_model_takes_the_compiled_engine_of_another(tmp_path: Path) -> None:
    """The accelerator's own key for an engine holds the graph's shape but not its weights."""
    folder = write_model(tmp_path / "model")
    build_model(read_source(folder), tmp_path / "one", device="gpu")
    build_model(read_source(folder), tmp_path / "two", device="gpu")
    tensors = {name: values * 2 for name, values in read_safetensors(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    build_model(read_source(folder), tmp_path / "other", device="gpu")
    assert (
        engine_prefix(tmp_path / "one")
        == engine_prefix(tmp_path / "two")
        != engine_prefix(tmp_path / "other")
    )


def test_the_queue_is_bounded_only_on_request(repository: Path, tmp_path: Path) -> None:
    assert not config_of(repository / "text_embedder_encoder").dynamic_batching.HasField(
        "default_queue_policy"
    )
    model = read_source(write_model(tmp_path / "model"))
    options = GpuOptions(engine_cache="/engines", queue_size=64)
    build_model(model, tmp_path / "models", device="gpu", gpu=options)
    config = config_of(tmp_path / "models" / "text_embedder_encoder")
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.timeout_action) == (64, model_config_pb2.ModelQueuePolicy.REJECT)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["trt_engine_cache_path"] == "/engines"


def test_a_repository_changes_its_device_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    model, out = read_source(write_model(tmp_path / "model")), tmp_path / "models"
    (out / "somebodys_model").mkdir(parents=True)
    assert build_model(model, out, device="gpu").fresh
    assert not build_model(model, out, device="gpu").fresh
    names = {"text_embedder", "text_embedder_tokenizer", "text_embedder_encoder"}
    assert {path.name for path in out.iterdir()} == names | {"somebodys_model"}
    assert build_model(model, out, device="cpu").fresh
    assert {path.name for path in out.iterdir()} == {"text_embedder", "somebodys_model"}
    assert build_model(model, out, device="gpu").fresh
    assert {path.name for path in out.iterdir()} == names | {"somebodys_model"}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "models", ".models-build.lock"}


def test_the_tiny_models_are_large_enough_to_tell_apart() -> None:
    assert HIDDEN % HEADS == 0
    assert max(len(text.split()) for text in TEXTS) > POSITIONS

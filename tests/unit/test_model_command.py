"""`livevec model`: what it prints, and what it says where a folder cannot be built."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from daemon.cli.app import app
from daemon.errors import ConfigError
from tests.support.tiny_model import (
    HIDDEN,
    POSITIONS,
    write_model,
    write_modules,
    write_pooling,
    write_prompts,
)
from triton_models.weights import read_safetensors


def livevec(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in ("model", *arguments)])


def report_of(*arguments: object) -> Any:
    result = livevec(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal_of(*arguments: object) -> str:
    result = livevec(*arguments)
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


@pytest.fixture
def e5(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "tiny-e5")
    write_modules(folder, "Transformer", "Pooling", "Normalize")
    write_pooling(folder, pooling_mode_mean_tokens=True)
    write_prompts(folder, query="query: ", passage="passage: ")
    return folder


def test_build_reports_the_model_and_every_file(e5: Path, tmp_path: Path) -> None:
    report = report_of("build", "--from", e5, "--to", tmp_path / "models", "--name", "e5")
    assert (report["dimension"], report["max_tokens"], report["pooling"]) == (HIDDEN, POSITIONS, "mean")
    assert (report["document_prompt"], report["query_prompt"]) == ("passage: ", "query: ")
    (form,) = report["forms"]
    assert (form["device"], form["fresh"]) == ("cpu", True)
    files = {path: (tmp_path / "models" / path).stat().st_size for path in form["files"]}
    assert files == form["files"]
    assert {"e5/config.pbtxt", "e5/1/encoder.bin", "e5/1/tokenizer.json"} <= set(files)


def test_both_devices_are_two_repositories_of_one_name_and_fingerprint(e5: Path, tmp_path: Path) -> None:
    report = report_of("build", "--from", e5, "--to", tmp_path / "models", "--device", "both")
    assert [form["repository"] for form in report["forms"]] == [
        str(tmp_path / "models" / device) for device in ("cpu", "gpu")
    ]
    for form in report["forms"]:
        config = (Path(form["repository"]) / "text_embedder" / "config.pbtxt").read_text()
        assert report["fingerprint"] in config
    assert "text_embedder_encoder/1/model.onnx" in report["forms"][1]["files"]


def test_building_again_changes_nothing_and_says_so(e5: Path, tmp_path: Path) -> None:
    arguments = ("build", "--from", e5, "--to", tmp_path / "models")
    first = report_of(*arguments)
    again = report_of(*arguments)
    assert (first["forms"][0]["fresh"], again["forms"][0]["fresh"]) == (True, False)
    assert first["fingerprint"] == again["fingerprint"]


def test_the_gpu_form_says_that_no_gpu_has_run_it(e5: Path, tmp_path: Path) -> None:
    on_gpu = livevec("build", "--from", e5, "--to", tmp_path / "models", "--device", "gpu")
    assert "not run on a GPU" in on_gpu.stderr
    on_cpu = livevec("build", "--from", e5, "--to", tmp_path / "models", "--device", "cpu")
    assert "GPU" not in on_cpu.stderr


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("multilingual-e5-small", "--document-prompt 'passage: ' --query-prompt 'query: '"),
        ("bge-base-en-v1.5", "Represent this sentence"),
        ("multilingual-e5-large-instruct", None),
        ("gte-base", None),
        ("free5-model", None),
    ],
)
def test_prompts_that_a_folder_keeps_silent_about_are_suggested(
    name: str, hint: str | None, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / name)
    arguments = ("build", "--from", folder, "--to", tmp_path / "models")
    said = " ".join(livevec(*arguments).stderr.split())
    assert hint in said if hint else "prompt '" not in said
    chosen = livevec(*arguments, "--query-prompt", "query: ", "--document-prompt", "passage: ")
    assert "was trained with prompts" not in chosen.stderr


def test_a_bare_folder_s_assumptions_are_said(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    result = livevec("build", "--from", folder, "--to", tmp_path / "models")
    assert "mean pooling and normalised vectors are assumed" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("present", "remedy"),
    [
        ("pytorch_model.bin", r"pytorch_model\.bin is not read.*convert it"),
        ("model.safetensors.index.json", "in several files: join them"),
    ],
)
def test_weights_in_another_form_are_refused_with_what_to_do(
    present: str, remedy: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / present)
    message = refusal_of("build", "--from", folder, "--to", tmp_path / "models")
    assert re.search(rf"has no model\.safetensors; .*{remedy}", message)


def test_another_architecture_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", model_type="mpnet")
    message = refusal_of("build", "--from", folder, "--to", tmp_path / "models")
    assert "'mpnet' model" in message
    assert "choose one of these" in message


@pytest.mark.parametrize(
    "content", [b"", b"version 1\noid sha256:1234\nsize 90868376\n", b"\x02" + bytes(7) + b"<>"]
)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_something_else_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).write_bytes(content)
    assert re.search(
        f"{name} .*download it again", refusal_of("build", "--from", folder, "--to", tmp_path / "m")
    )


def test_a_repository_that_cannot_be_written_is_refused(e5: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal_of("build", "--from", e5, "--to", tmp_path / "file" / "models")
    assert str(tmp_path / "file") in message
    assert "may read and write" in message


def test_check_passes_what_build_makes(e5: Path) -> None:
    report = report_of("check", "--from", e5)
    assert len(report["forms"]) == 2
    assert all(form["cosine_min"] >= report["cosine_min_allowed"] for form in report["forms"])


def test_check_fails_where_float16_changes_the_vectors(tmp_path: Path) -> None:
    """An attention whose scores are hundreds apart in float32 overflows in float16."""
    folder = write_model(tmp_path / "model")
    tensors = {name: values.copy() for name, values in read_safetensors(folder / "model.safetensors").items()}
    for part in ("query", "key"):
        tensors[f"encoder.layer.0.attention.self.{part}.bias"] += np.float32(3e4)
    save_file(tensors, folder / "model.safetensors")
    result = livevec("check", "--from", folder)
    assert result.exit_code == 1
    assert "do not serve that form" in result.stderr

"""The ensemble for a GPU inside a real Triton: all of it as it is built, but the encoder's step run on CPU."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from daemon.embedding.triton.embedder import TritonEmbedder
from daemon.errors import RetryLater, SplitBatch
from tests.support.bert_reference import DIVERSE_TEXTS, BertReference
from tests.support.triton_server import TritonServer, triton_server
from triton_models import build_model, packaged_weights, read_source

RECOVERY_TIMEOUT_S = 60.0
TEXTS = DIVERSE_TEXTS[:40]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    models = folder / "models"
    model = read_source(packaged_weights(), document_prompt="passage: ", query_prompt="query: ")
    build_model(model, models, device="gpu")
    run_on_cpu(models / "text_embedder_encoder")
    with triton_server(folder, models=models) as server:
        yield server


def run_on_cpu(encoder: Path) -> None:
    path = encoder / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.backend = "python"
    config.ClearField("default_model_filename")
    config.ClearField("optimization")
    config.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    path.write_text(text_format.MessageToString(config))
    shutil.copyfile(Path(__file__).parents[1] / "support" / "onnx_on_cpu.py", encoder / "1" / "model.py")


@pytest.fixture(scope="module")
def reference() -> BertReference:
    return BertReference(packaged_weights(), heads=12, max_tokens=256)


def embedder_of(server: TritonServer) -> TritonEmbedder:
    return TritonEmbedder(server.url, "text_embedder", dimension=384, timeout_s=60.0, requests_max=32)


async def test_vectors_and_prompts_through_the_ensemble_equal_the_reference(
    triton: TritonServer, reference: BertReference
) -> None:
    embedder = embedder_of(triton)
    space = await embedder.start()
    documents, queries = await asyncio.gather(embedder.embed(TEXTS), embedder.embed(TEXTS, prompt="query"))
    await embedder.close()
    expected = read_source(packaged_weights(), document_prompt="passage: ", query_prompt="query: ")
    assert (space.dimension, space.max_tokens, space.fingerprint) == (384, 256, expected.fingerprint())
    for vectors, prompt in ((documents, "passage: "), (queries, "query: ")):
        cosines = (vectors * reference.embed([prompt + text for text in TEXTS])).sum(axis=1)
        assert cosines.min() >= 0.999, f"text {int(cosines.argmin())} has cosine {cosines.min()}"
    assert documents[4] @ queries[4] < 0.99


async def test_requests_at_once_get_their_own_rows_and_a_refused_one_fails_alone(
    triton: TritonServer,
) -> None:
    embedder = embedder_of(triton)
    await embedder.start()
    texts = TEXTS[:12]
    expected = await embedder.embed(texts)
    pieces = [(i, i + 1 + i % 4) for i in range(len(texts))]
    answers = await asyncio.gather(
        *(
            embedder.embed(["two", "texts"], prompt="unknown")  # type: ignore[arg-type]
            if begin % 5 == 3
            else embedder.embed(texts[begin:end])
            for begin, end in pieces
        ),
        return_exceptions=True,
    )
    await embedder.close()
    for (begin, end), answer in zip(pieces, answers, strict=True):
        if begin % 5 == 3:
            assert isinstance(answer, SplitBatch), answer
            continue
        assert isinstance(answer, np.ndarray), answer
        assert (answer * expected[begin:end]).sum(axis=1).min() >= 0.9999


async def test_a_tokenizer_whose_process_was_killed_is_loaded_again(triton: TritonServer) -> None:
    """Which the daemon, who knows the ensemble's name alone, can do only while there is one such process."""
    embedder = embedder_of(triton)
    await embedder.start()
    before = await embedder.embed(["still the same vector"])
    (tokenizer,) = (pid for pid in triton.stub_pids() if is_tokenizer(pid))
    os.kill(tokenizer, signal.SIGKILL)
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while True:
        try:
            after = await embedder.embed(["still the same vector"])
            break
        except RetryLater as error:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(error.retry_after_s)
    await embedder.close()
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert tokenizer not in triton.stub_pids()


def is_tokenizer(pid: int) -> bool:
    return b"text_embedder_tokenizer" in Path(f"/proc/{pid}/cmdline").read_bytes()

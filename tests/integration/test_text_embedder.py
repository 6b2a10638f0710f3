"""The text embedder inside a real Triton, and the client that speaks to it."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from daemon.embedding.triton.embedder import TritonEmbedder
from daemon.errors import RejectRow, RetryLater, SplitBatch, StopProcess
from tests.support.bert_reference import DIVERSE_TEXTS, BertReference
from tests.support.triton_server import TritonServer, triton_server
from triton_models import packaged_weights

RECOVERY_TIMEOUT_S = 120.0
T = TypeVar("T")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with triton_server(tmp_path_factory.mktemp("triton")) as server:
        yield server


@asynccontextmanager
async def embedder_of(
    server: TritonServer, *, model: str = "text_embedder", dimension: int = 384, timeout_s: float = 10.0
) -> AsyncIterator[TritonEmbedder]:
    embedder = TritonEmbedder(server.url, model, dimension=dimension, timeout_s=timeout_s)
    try:
        yield embedder
    finally:
        await embedder.close()


async def until_it_works(call: Callable[[], Awaitable[T]]) -> T:
    """Calls again as the errors say, within a deadline."""
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while True:
        try:
            return await call()
        except RetryLater as error:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(error.retry_after_s)


async def test_vectors_through_triton_equal_the_reference(triton: TritonServer) -> None:
    reference = BertReference(packaged_weights(), heads=12, max_tokens=256)
    async with embedder_of(triton) as embedder:
        space = await embedder.start()
        assert (space.dimension, space.max_tokens, len(space.fingerprint)) == (384, 256, 32)
        embeddings = await embedder.embed(DIVERSE_TEXTS)
    assert embeddings.dtype == np.float32
    assert embeddings.flags.c_contiguous
    cosines = (embeddings * reference.embed(DIVERSE_TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.999, f"text {int(cosines.argmin())} has cosine {cosines.min()}"


async def test_requests_joined_by_triton_get_their_own_rows(triton: TritonServer) -> None:
    async with embedder_of(triton) as embedder:
        await embedder.start()
        expected = await embedder.embed(DIVERSE_TEXTS)
        # Pieces of different sizes, all in flight at once.
        pieces = [(i, i + 1 + i % 5) for i in range(len(DIVERSE_TEXTS))] * 4
        answers = await asyncio.gather(*(embedder.embed(DIVERSE_TEXTS[i:j]) for i, j in pieces))
    for (i, j), answer in zip(pieces, answers, strict=True):
        assert len(answer) == len(expected[i:j])
        assert (answer * expected[i:j]).sum(axis=1).min() >= 0.9999


async def test_a_refused_request_does_not_fail_those_joined_with_it(triton: TritonServer) -> None:
    async with embedder_of(triton) as embedder:
        await embedder.start()
        answers = await asyncio.gather(
            *(
                embedder.embed(["a text"] * 8, prompt="unknown" if i % 7 == 3 else "document")  # type: ignore[arg-type]
                for i in range(28)
            ),
            return_exceptions=True,
        )
    for i, answer in enumerate(answers):
        assert isinstance(answer, SplitBatch if i % 7 == 3 else np.ndarray), answer


async def test_a_request_is_answered_before_those_joined_with_it_are_embedded(triton: TritonServer) -> None:
    long = "colourless green ideas sleep furiously " * 100
    async with embedder_of(triton, timeout_s=60.0) as embedder:
        await embedder.start()
        # While the first runs, the others wait and are joined into one execution.
        running = asyncio.create_task(embedder.embed([long] * 10))
        await asyncio.sleep(0.05)
        small = asyncio.create_task(embedder.embed(["a"]))
        await asyncio.sleep(0.01)
        large = asyncio.create_task(embedder.embed([long] * 60))
        await small
        assert not (await asyncio.wait({large}, timeout=0.1))[0]
        await asyncio.gather(running, large)


async def test_no_text_is_an_empty_batch_without_a_request(triton: TritonServer) -> None:
    async with embedder_of(triton) as embedder:
        assert (await embedder.embed([])).shape == (0, 384)


async def test_another_dimension_than_the_index_is_refused_at_start(triton: TritonServer) -> None:
    async with embedder_of(triton, dimension=768) as embedder:
        with pytest.raises(StopProcess, match=r"gives 384 numbers but .* dimension is 768"):
            await embedder.start()


async def test_a_model_that_triton_does_not_have_is_refused_at_start(triton: TritonServer) -> None:
    async with embedder_of(triton, model="no_such_model") as embedder:
        with pytest.raises(StopProcess, match="not in Triton's model repository"):
            await embedder.start()


async def test_nothing_listening_is_retried_later(triton: TritonServer) -> None:
    embedder = TritonEmbedder("127.0.0.1:1", "text_embedder", dimension=384)
    with pytest.raises(RetryLater, match="cannot be reached"):
        await embedder.start()
    await embedder.close()


async def test_a_batch_over_the_model_s_limit_is_split(triton: TritonServer) -> None:
    async with embedder_of(triton) as embedder:
        await embedder.start()
        with pytest.raises(SplitBatch):
            await embedder.embed(["one"] * 501)
        assert len(await embedder.embed(["one"] * 500)) == 500


async def test_one_text_that_the_model_refuses_is_rejected(triton: TritonServer) -> None:
    async with embedder_of(triton) as embedder:
        await embedder.start()
        with pytest.raises(RejectRow):
            await embedder.embed(["one"], prompt="unknown")  # type: ignore[arg-type]


async def test_a_batch_too_slow_for_the_time_out_is_split(triton: TritonServer) -> None:
    """It would time out for ever: only one lone text is tried again as it is."""
    long = "colourless green ideas sleep furiously " * 100
    async with embedder_of(triton, timeout_s=0.5) as embedder:
        await until_it_works(embedder.start)
        with pytest.raises(SplitBatch, match="timeout_s"):
            await embedder.embed([long] * 250)
        # Triton is still at it: what a client gives up is computed to its end.
        with pytest.raises(RetryLater, match="did not answer in time"):
            await embedder.embed(["one"])
        assert len(await until_it_works(lambda: embedder.embed(["one"]))) == 1


async def test_a_model_whose_process_was_killed_is_loaded_again(triton: TritonServer) -> None:
    async with embedder_of(triton) as embedder:
        await embedder.start()
        before = await embedder.embed(["still the same vector"])
        (stub,) = triton.stub_pids()
        in_flight = [asyncio.create_task(embedder.embed(["some words here"] * 300)) for _ in range(3)]
        await asyncio.sleep(0.02)
        os.kill(stub, signal.SIGKILL)
        answers = await asyncio.gather(*in_flight, return_exceptions=True)
        assert any(isinstance(answer, RetryLater) for answer in answers)
        assert all(isinstance(answer, RetryLater | np.ndarray) for answer in answers), answers
        after = await until_it_works(lambda: embedder.embed(["still the same vector"]))
        assert stub not in triton.stub_pids()
        np.testing.assert_allclose(after, before, atol=1e-6)


async def test_a_model_that_was_unloaded_is_loaded_again(triton: TritonServer) -> None:
    """A daemon that is killed between unload and load must not leave the model unloaded."""
    async with embedder_of(triton) as embedder:
        await embedder.start()
        await asyncio.to_thread(triton.unload, "text_embedder")
        with pytest.raises(RetryLater, match="has not loaded the model"):
            await embedder.embed(["a"])
        assert len(await until_it_works(lambda: embedder.embed(["a"]))) == 1


async def test_a_caller_that_gives_up_does_not_stop_the_reload(triton: TritonServer) -> None:
    async with embedder_of(triton) as embedder:
        await embedder.start()
        await asyncio.to_thread(triton.unload, "text_embedder")
        call = asyncio.create_task(embedder.embed(["a"]))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while not triton.is_loaded("text_embedder"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_triton_killed_and_started_again_is_used_again(tmp_path: Path) -> None:
    with triton_server(tmp_path) as server:
        async with embedder_of(server) as embedder:
            await embedder.start()
            server.kill()
            with pytest.raises(RetryLater):
                await embedder.embed(["a"])
            await asyncio.to_thread(server.start)
            assert len(await until_it_works(lambda: embedder.embed(["a"]))) == 1


async def test_another_model_under_the_same_name_is_refused_after_a_restart(
    triton: TritonServer, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(triton.models, models)
    with triton_server(tmp_path, models=models) as server:
        async with embedder_of(server) as embedder:
            space = await embedder.start()
            server.kill()
            config = models / "text_embedder" / "config.pbtxt"
            config.write_text(config.read_text().replace(space.fingerprint, "of-other-weights"))
            await asyncio.to_thread(server.start)
            with pytest.raises(StopProcess, match="replaced by another one"):
                await until_it_works(lambda: embedder.embed(["a"]))


async def test_a_check_notices_a_model_swapped_while_running(triton: TritonServer, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(triton.models, models)
    with triton_server(tmp_path, models=models) as server:
        async with embedder_of(server) as embedder:
            space = await embedder.start()
            config = models / "text_embedder" / "config.pbtxt"
            config.write_text(config.read_text().replace(space.fingerprint, "of-other-weights"))
            await asyncio.to_thread(server.load, "text_embedder")
            with pytest.raises(StopProcess, match="replaced by another one"):
                await embedder.check()


async def test_the_prompt_is_put_before_the_text(triton: TritonServer, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(triton.models, models)
    path = models / "text_embedder" / "1" / "settings.json"
    settings = json.loads(path.read_text()) | {"prompts": {"document": "passage: ", "query": "query: "}}
    path.write_text(json.dumps(settings))
    async with embedder_of(triton) as bare:
        await bare.start()
        expected = await bare.embed(["passage: dog", "query: dog"])
    with triton_server(tmp_path, models=models) as server:
        async with embedder_of(server) as embedder:
            await embedder.start()
            document, query = await asyncio.gather(
                embedder.embed(["dog"]), embedder.embed(["dog"], prompt="query")
            )
    assert document[0] @ expected[0] >= 0.9999
    assert query[0] @ expected[1] >= 0.9999
    assert document[0] @ query[0] < 0.99


async def test_a_request_that_arrives_while_another_runs_is_not_left_waiting(triton: TritonServer) -> None:
    """With any queue policy in config.pbtxt every third of these rounds lasts over 500 ms."""
    rounds = 60
    durations_s = []
    async with embedder_of(triton) as embedder:
        await embedder.start()
        for _ in range(rounds):
            begin = time.monotonic()
            await asyncio.gather(*(embedder.embed(["a few words here"]) for _ in range(4)))
            durations_s.append(time.monotonic() - begin)
    assert sum(duration > 0.45 for duration in durations_s) < rounds / 10, sorted(durations_s)[-10:]

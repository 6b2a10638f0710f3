"""What every embedder promises, held by each of them against its real server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from daemon.embedding.embedder import Embedder
from daemon.embedding.factory import make_embedder
from daemon.errors import RetryLater, StopProcess
from daemon.settings import EmbeddingSettings
from tests.support.bert_reference import DIVERSE_TEXTS
from tests.support.openai_server import MODEL, openai_server
from tests.support.triton_server import triton_server

TEXTS = [text for text in DIVERSE_TEXTS if text]
"""None is empty: the pipeline embeds no such text, and OpenAI refuses it."""
NOWHERE = {"triton": "127.0.0.1:1", "openai": "http://127.0.0.1:1/v1"}


@dataclass(frozen=True)
class Provider:
    """One kind of server, running; `make` gives an embedder of it, with other settings where they are given."""

    name: str
    make: Callable[..., Embedder]


@pytest.fixture(scope="module", params=["triton", "openai"])
def provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with ExitStack() as servers:
        if request.param == "triton":
            url = servers.enter_context(triton_server(tmp_path_factory.mktemp("triton"))).url
            model = "text_embedder"
        else:
            url, model = servers.enter_context(openai_server()).url, MODEL

        def make(**settings: Any) -> Embedder:
            given = {"provider": request.param, "url": url, "model": model, **settings}
            return make_embedder(EmbeddingSettings(**given))

        yield Provider(request.param, make)


@pytest.fixture
async def embedder(provider: Provider) -> AsyncIterator[Embedder]:
    """Started."""
    found = provider.make()
    try:
        await found.start()
        yield found
    finally:
        await found.close()


async def test_the_space_is_known_once_it_has_started(provider: Provider) -> None:
    first, second = provider.make(), provider.make()
    try:
        space = await first.start()
        assert (space.dimension, len(space.fingerprint)) == (384, 32)
        assert first.space == space == await second.start()
    finally:
        await first.close()
        await second.close()


async def test_vectors_are_rows_of_float32_that_nobody_can_change(embedder: Embedder) -> None:
    for texts in (TEXTS, TEXTS[:1]):
        embeddings = await embedder.embed(texts)
        assert (embeddings.dtype, embeddings.shape) == (np.dtype(np.float32), (len(texts), 384))
        assert embeddings.flags.c_contiguous
        assert not embeddings.flags.writeable


async def test_no_text_is_an_empty_batch(embedder: Embedder) -> None:
    assert (await embedder.embed([])).shape == (0, 384)


async def test_calls_in_flight_at_once_get_their_own_rows(embedder: Embedder) -> None:
    expected = await embedder.embed(TEXTS)
    pieces = [(i, min(i + 1 + i % 5, len(TEXTS))) for i in range(len(TEXTS))]
    answers = await asyncio.gather(*(embedder.embed(TEXTS[i:j]) for i, j in pieces))
    for (i, j), answer in zip(pieces, answers, strict=True):
        assert (answer * expected[i:j]).sum(axis=1).min() >= 0.9999


async def test_documents_are_the_prompt_by_default_and_queries_have_their_own(embedder: Embedder) -> None:
    plain, document, query = (
        await embedder.embed(["dog"]),
        await embedder.embed(["dog"], prompt="document"),
        await embedder.embed(["dog"], prompt="query"),
    )
    np.testing.assert_allclose(plain, document, atol=1e-6)
    assert query.shape == (1, 384)


async def test_a_check_of_what_works_passes(embedder: Embedder) -> None:
    await embedder.check()


async def test_another_dimension_than_the_index_stops_the_start(provider: Provider) -> None:
    embedder = provider.make(dimension=768)
    with pytest.raises(StopProcess, match=r"gives .*384.* dimension is 768"):
        await embedder.start()
    await embedder.close()


async def test_a_model_that_the_server_does_not_have_stops_the_start(provider: Provider) -> None:
    embedder = provider.make(model="no_such_model")
    with pytest.raises(StopProcess, match=r"\[embedding\] model"):
        await embedder.start()
    await embedder.close()


async def test_a_server_that_is_away_is_waited_for(provider: Provider) -> None:
    embedder = provider.make(url=NOWHERE[provider.name])
    with pytest.raises(RetryLater, match="cannot be reached"):
        await embedder.start()
    await embedder.close()

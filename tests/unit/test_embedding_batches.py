"""Equal texts once, bounded requests, and one bad text that does not fail its neighbours."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from daemon.embedding.batches import EmbeddingBatches
from daemon.embedding.embedder import EmbeddingSpace, Prompt
from daemon.errors import RejectRow, RetryLater, SplitBatch, StopProcess
from daemon.patience import Patience
from daemon.settings import RetrySettings
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics


class RefusingEmbedder:
    """Embeds a text as its length; refuses batches with a text that says so, as a server does."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.away = 0
        self.space = EmbeddingSpace("lengths", 1, 0, "")

    async def start(self) -> EmbeddingSpace:
        return self.space

    async def embed(
        self, texts: Sequence[str], *, prompt: Prompt = "document"
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.requests.append(list(texts))
        if self.away:
            self.away -= 1
            raise RetryLater("away", 0.0)
        if any("poison" in text for text in texts):
            raise SplitBatch("one of them") if len(texts) > 1 else RejectRow("this one", "refused")
        if "misconfigured" in texts:
            raise StopProcess("no such model")
        return np.array([[len(text)] for text in texts], np.float32)

    async def check(self) -> None:
        """Always well."""

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def patience() -> Patience:
    return Patience(RetrySettings(backoff_ms_min=1, backoff_ms_max=2), Health(Metrics()))


def batches(embedder: RefusingEmbedder, texts_max: int = 100) -> EmbeddingBatches:
    return EmbeddingBatches(embedder, texts_max, "FLOAT32")


async def test_a_bad_text_is_refused_alone(patience: Patience) -> None:
    texts = [f"text {number}" for number in range(40)]
    texts[17] = texts[33] = "poison 1"
    texts[20] = "poison 2"
    found = await batches(RefusingEmbedder()).embed(texts, patience)
    for text, vector in zip(texts, found.vectors, strict=True):
        if "poison" in text:
            assert isinstance(vector, RejectRow)
            assert vector.reason == "refused"
        else:
            assert vector == np.float32(len(text)).tobytes()


async def test_equal_texts_are_sent_once_in_requests_of_bounded_size(patience: Patience) -> None:
    embedder = RefusingEmbedder()
    texts = [f"text {number % 25}" for number in range(100)]
    found = await batches(embedder, texts_max=10).embed(texts, patience)
    assert sorted(len(request) for request in embedder.requests) == [5, 10, 10]
    assert found.texts == 25
    assert [np.frombuffer(v, np.float32)[0] for v in found.vectors if isinstance(v, bytes)] == [
        len(t) for t in texts
    ]


async def test_an_embedder_that_is_away_is_waited_for(patience: Patience) -> None:
    embedder = RefusingEmbedder()
    embedder.away = 3
    found = await batches(embedder).embed(["a"], patience)
    assert len(embedder.requests) == 4
    assert isinstance(found.vectors[0], bytes)


async def test_what_only_a_person_can_mend_ends_the_work(patience: Patience) -> None:
    with pytest.raises(StopProcess):
        await asyncio.wait_for(batches(RefusingEmbedder()).embed(["misconfigured"], patience), 5)

"""Texts cut to what a model takes, and packed into requests that its server takes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from daemon.config import parse
from daemon.embedding.openai.answers import PaidVectors
from daemon.embedding.openai.requests import RequestCutter
from daemon.errors import ConfigError
from triton_models import packaged_weights

TOKENIZER = packaged_weights() / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_file(str(TOKENIZER))
    found.no_truncation()
    found.no_padding()
    return found


@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=30),
    texts_max=st.integers(1, 10),
    tokens_max=st.integers(1, 60),
    text_tokens_max=st.integers(0, 40),
)
async def test_every_text_is_in_one_request_in_its_order_within_the_limits(
    texts: list[str], texts_max: int, tokens_max: int, text_tokens_max: int
) -> None:
    requests = await RequestCutter(texts_max, tokens_max, text_tokens_max).requests(texts)
    sent = [text for request in requests for text in request]
    assert all(whole.startswith(part) for whole, part in zip(texts, sent, strict=True))
    for request in requests:
        sizes = [len(text.encode()) for text in request]
        assert 1 <= len(request) <= texts_max
        assert len(request) == 1 or sum(sizes) <= 2 * tokens_max
        assert not text_tokens_max or max(sizes) <= 2 * text_tokens_max


async def test_a_request_is_as_full_as_the_limits_allow() -> None:
    requests = await RequestCutter(100, 10, 0).requests(["x" * 8] * 5)
    assert [len(request) for request in requests] == [2, 2, 1]


async def test_with_a_tokenizer_a_text_is_cut_to_exactly_what_the_model_takes(tokenizer: Tokenizer) -> None:
    text = "Colourless green ideas sleep furiously; antidisestablishmentarianism rarely does. " * 30
    cutter = RequestCutter(100, 100_000, 64, str(TOKENIZER))
    ((cut, short),) = await cutter.requests([text, "short"])
    assert text.startswith(cut)
    assert len(tokenizer.encode(cut).ids) == 64
    assert short == "short"


async def test_with_a_tokenizer_requests_are_counted_in_its_tokens(tokenizer: Tokenizer) -> None:
    texts = ["nine words that are each one of its tokens"] * 10
    tokens = len(tokenizer.encode(texts[0]).ids)
    cutter = RequestCutter(100, 3 * tokens, 0, str(TOKENIZER))
    assert [len(request) for request in await cutter.requests(texts)] == [3, 3, 3, 1]


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedding.tokenizer .*missing.json"):
        RequestCutter(1, 1, 1, str(tmp_path / "missing.json"))


def test_vectors_that_were_paid_for_are_given_once_and_only_the_latest_are_kept() -> None:
    paid = PaidVectors(1024 * 1024)  # Eight of this length fit.
    vectors = {f"text {number}": np.full(1024 * 1024, number, np.float32) for number in range(10)}
    paid.keep(vectors)
    taken = paid.take([*vectors, "another"])
    assert list(taken) == list(vectors)[2:]
    np.testing.assert_array_equal(taken["text 7"], vectors["text 7"])
    assert paid.take(list(vectors)) == {}


OPENAI = {"provider": "openai", "url": "https://api.openai.com/v1", "model": "text-embedding-3-small"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "local"}, "needs `url`"),
        ({"url": ""}, "needs `url`"),
        ({"url": "api.openai.com/v1"}, "needs `url`"),
        ({"url": "https://me:s3cret@host/v1"}, "without a key in it"),
        ({"url": "https://host/v1?key=s3cret"}, "without a key in it"),
        ({"model": ""}, "needs `model`"),
        ({"model": None}, "needs `model`"),
        ({"api_key": "s3cret\n"}, "api_key contains a space, a line break"),
        ({"provider": "triton", "document_prompt": "passage: "}, "are for provider openai"),
    ],
)
def test_settings_that_do_not_fit_the_provider_are_refused(change: dict[str, str | None], said: str) -> None:
    settings = {name: value for name, value in {**OPENAI, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=said) as refused:
        parse({"embedding": settings})
    assert "s3cret" not in str(refused.value)


def test_settings_that_fit_are_taken() -> None:
    for url in ("http://localhost:11434/v1", "https://host", "https://name.openai.azure.com/openai/v1/"):
        assert parse({"embedding": {**OPENAI, "url": url, "api_key": "sk-1"}}).embedding.url == url

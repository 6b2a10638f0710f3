"""The client of OpenAI-compatible servers against a real HTTP server, which fails in all the ways that they do."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import pytest

from daemon.embedding.openai import embedder as openai
from daemon.embedding.openai.embedder import OpenAIEmbedder
from daemon.embedding.openai.failures import TRIES_MAX
from daemon.errors import FailureClass, RejectRow, RetryLater, SplitBatch, StopProcess
from daemon.settings import EmbeddingSettings
from tests.support.openai_server import MODEL, OpenAIServer, Reply, error, openai_server, refusing

TEXTS = [f"text number {number}" for number in range(40)]
KEY = "sk-4f81e0aa9d"
T = TypeVar("T")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server(api_key=KEY) as running:
        yield running


@asynccontextmanager
async def embedder_of(server: OpenAIServer, **settings: Any) -> AsyncIterator[OpenAIEmbedder]:
    given = {"provider": "openai", "url": server.url, "model": MODEL, "api_key": KEY, **settings}
    embedder = OpenAIEmbedder(EmbeddingSettings(**given))
    try:
        yield embedder
    finally:
        server.hold.set()
        await embedder.close()


@pytest.fixture
async def embedder(server: OpenAIServer) -> AsyncIterator[OpenAIEmbedder]:
    """Started, with the settings' defaults."""
    async with embedder_of(server) as started:
        await started.start()
        server.requests.clear()
        server.answered = 0
        yield started


async def failure_of(call: Awaitable[Any]) -> FailureClass:
    with pytest.raises(FailureClass) as caught:
        await call
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """Calls again as the errors say, within a deadline."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await call()
        except RetryLater as failure:
            assert time.monotonic() < deadline
            await asyncio.sleep(failure.retry_after_s)


async def until_it_works(embedder: OpenAIEmbedder, texts: list[str]) -> np.ndarray:
    return await again(lambda: embedder.embed(texts))


# ---- what is sent, and what is read


@pytest.mark.parametrize("form", ["as asked", "floats"])
@pytest.mark.parametrize("shuffled", [False, True])
async def test_rows_belong_to_texts_in_every_form_of_answer(
    server: OpenAIServer, embedder: OpenAIEmbedder, form: Any, shuffled: bool
) -> None:
    server.form, server.shuffled = form, shuffled
    embeddings = await embedder.embed(TEXTS)
    assert (embeddings.dtype, embeddings.shape) == (np.dtype(np.float32), (40, 384))
    assert embeddings.flags.c_contiguous
    assert not embeddings.flags.writeable
    np.testing.assert_array_equal(embeddings, server.vectors(TEXTS))


async def test_an_answer_without_indexes_is_in_the_order_of_the_texts(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.with_index = False
    np.testing.assert_array_equal(await embedder.embed(TEXTS), server.vectors(TEXTS))


async def test_the_request_is_that_of_the_api(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    await embedder.embed(["one", "two"])
    (request,) = server.requests
    assert request.body == {"model": MODEL, "input": ["one", "two"], "encoding_format": "base64"}
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"


async def test_without_a_key_no_key_is_sent() -> None:
    with openai_server() as server:
        async with embedder_of(server, api_key="") as embedder:
            await embedder.start()
        assert "authorization" not in server.requests[0].headers


async def test_a_shorter_dimension_is_asked_for_only_where_the_settings_say_so() -> None:
    with openai_server(api_key=KEY, dimension=1536, can_shorten=True) as server:
        async with embedder_of(server, dimension=256, request_dimension=True) as embedder:
            await embedder.start()
            assert (await embedder.embed(TEXTS)).shape == (40, 256)
        async with embedder_of(server, dimension=256) as embedder:
            with pytest.raises(
                StopProcess, match=r"1536 numbers, \[embedding\] dimension is 256.*request_dimension"
            ):
                await embedder.start()
        async with embedder_of(server, dimension=1536) as embedder:
            assert (await embedder.start()).dimension == 1536


async def test_a_model_that_cannot_shorten_its_vectors_stops_the_start(server: OpenAIServer) -> None:
    async with embedder_of(server, request_dimension=True) as embedder:
        with pytest.raises(StopProcess, match="set request_dimension = false"):
            await embedder.start()


async def test_the_prompts_are_put_before_the_texts(server: OpenAIServer) -> None:
    async with embedder_of(server, document_prompt="passage: ", query_prompt="query: ") as embedder:
        await embedder.start()
        document, query = await embedder.embed(["dog"]), await embedder.embed(["dog"], prompt="query")
    np.testing.assert_array_equal(
        np.concatenate([document, query]), server.vectors(["passage: dog", "query: dog"])
    )


async def test_another_model_dimension_or_document_prompt_is_another_space(server: OpenAIServer) -> None:
    def fingerprint(**settings: Any) -> str:
        given = {"provider": "openai", "url": server.url, "model": MODEL, **settings}
        return OpenAIEmbedder(EmbeddingSettings(**given)).space.fingerprint

    others: list[dict[str, Any]] = [
        {"model": "another"},
        {"dimension": 256},
        {"document_prompt": "passage: "},
    ]
    assert len({fingerprint(), *(fingerprint(**other) for other in others)}) == 4
    # The same model from elsewhere, called otherwise: nothing needs to be embedded again.
    same: list[dict[str, Any]] = [
        {"url": "http://elsewhere/v1"},
        {"api_key": "k"},
        {"query_prompt": "query: "},
        {"batch_texts_max": 7},
    ]
    assert {fingerprint(**one) for one in same} == {fingerprint()}


async def test_half_a_character_is_sent_as_a_question_mark(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    await embedder.embed(["a \ud83d b"])
    assert server.texts == ["a ? b"]


async def test_a_call_is_sent_in_requests_of_bounded_texts_and_tokens(server: OpenAIServer) -> None:
    texts = [f"{number} ".ljust(200, "x") for number in range(40)]  # 100 tokens each, as estimated
    async with embedder_of(server, batch_texts_max=7, requests_max=1) as embedder:
        await embedder.start()
        server.requests.clear()
        embeddings = await embedder.embed(texts)
        np.testing.assert_array_equal(embeddings, server.vectors(texts))
        assert not embeddings.flags.writeable
        assert [len(request.texts) for request in server.requests] == [7, 7, 7, 7, 7, 5]
    async with embedder_of(server, request_tokens_max=1_000, requests_max=1) as embedder:
        await embedder.start()
        server.requests.clear()
        np.testing.assert_array_equal(await embedder.embed(texts), server.vectors(texts))
        assert [len(request.texts) for request in server.requests] == [10, 10, 10, 10]


async def test_a_text_longer_than_the_model_takes_is_cut(server: OpenAIServer) -> None:
    async with embedder_of(server, text_tokens_max=100) as embedder:
        assert (await embedder.start()).max_tokens == 100
        server.requests.clear()
        await embedder.embed(["ä" * 300, "short"])
    assert server.texts == ["ä" * 100, "short"]


async def test_connections_are_kept_and_no_more_are_open_than_requests_may_be(server: OpenAIServer) -> None:
    async with embedder_of(server, requests_max=3) as embedder:
        await embedder.start()
        server.hold.clear()
        calls = [asyncio.create_task(embedder.embed([text])) for text in TEXTS]
        await until(lambda: server.waiting == 3)
        await asyncio.sleep(0.05)  # Nothing tells of a fourth request that does not come.
        assert server.waiting == 3
        server.hold.set()
        await asyncio.gather(*calls)
    assert len({request.client for request in server.requests}) == 3


async def test_a_request_that_waits_for_its_turn_does_not_use_up_its_time(server: OpenAIServer) -> None:
    async with embedder_of(server, requests_max=1, timeout_s=2.0) as embedder:
        await again(embedder.start)
        server.rule = lambda _: time.sleep(0.15)
        assert len(await asyncio.gather(*(embedder.embed([text]) for text in TEXTS[:15]))) == 15


# ---- what fails for all texts


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_tells_to_wait_is_left_alone_until_then(
    server: OpenAIServer, embedder: OpenAIEmbedder, status: int
) -> None:
    server.script.append(error(status, "Rate limit reached", retry_after="17"))
    failure = await failure_of(embedder.embed(["a"]))
    assert isinstance(failure, RetryLater)
    assert failure.retry_after_s == 17
    for call in (embedder.embed(["b"]), embedder.check()):
        left = await failure_of(call)
        assert isinstance(left, RetryLater)
        assert 0 < left.retry_after_s <= 17
    assert server.texts == ["a"]


async def test_the_rate_limit_s_reset_is_waited_for(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    server.script.append(Reply(429, {"error": {"message": "Rate limit reached"}}, headers))
    failure = await failure_of(embedder.embed(["a"]))
    assert isinstance(failure, RetryLater)
    assert failure.retry_after_s == 360


async def test_after_the_wait_the_server_is_used_again(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.script.append(error(429, "Rate limit reached", retry_after_ms="20"))
    assert len(await until_it_works(embedder, ["a"])) == 1


async def test_an_account_without_credit_is_asked_again_in_a_minute(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.script.append(error(429, "You exceeded your current quota", "insufficient_quota"))
    failure = await failure_of(embedder.embed(["a"]))
    assert isinstance(failure, RetryLater)
    assert failure.retry_after_s == 60
    assert "add credit" in str(failure)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_key_stops_the_process_and_is_not_shown(server: OpenAIServer, status: int) -> None:
    server.rule = lambda request: error(status, f"Incorrect API key provided: {KEY}")
    async with embedder_of(server) as embedder:
        failure = await failure_of(embedder.start())
    assert isinstance(failure, StopProcess)
    assert "check [embedding] api_key" in str(failure)
    assert KEY not in str(failure) + repr(failure) + repr(failure.__cause__) + repr(failure.__context__)


@pytest.mark.parametrize("settings", [{"model": "no-such-model"}, {"url": "{url}/v2"}])
async def test_a_wrong_model_or_address_stops_the_process(
    server: OpenAIServer, settings: dict[str, str]
) -> None:
    given = {name: value.format(url=server.url) for name, value in settings.items()}
    async with embedder_of(server, **given) as embedder:
        with pytest.raises(StopProcess, match=r"check \[embedding\] model, and that url"):
            await embedder.start()


async def test_a_redirect_is_not_followed(server: OpenAIServer) -> None:
    """It would carry the key, and the texts, to where nobody sent them."""
    with openai_server() as elsewhere:
        server.rule = lambda _: Reply(307, headers={"location": f"{elsewhere.url}/embeddings"})
        async with embedder_of(server) as embedder:
            with pytest.raises(StopProcess, match="307"):
                await embedder.start()
        assert elsewhere.requests == []


async def test_nothing_listening_is_waited_for_and_used_once_it_is_there(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.stop()
    for call in (embedder.embed(["a"]), embedder.check()):
        failure = await failure_of(call)
        assert isinstance(failure, RetryLater)
        assert "cannot be reached (All connection attempts failed)" in str(failure)
    server.start()
    np.testing.assert_array_equal(await until_it_works(embedder, ["a"]), server.vectors(["a"]))


@pytest.mark.parametrize("texts", [1, 10])
async def test_a_request_after_a_failure_proves_the_model_by_the_way(
    server: OpenAIServer, texts: int
) -> None:
    async with embedder_of(server, batch_texts_max=10) as embedder:
        await embedder.start()
        server.script.append(error(502, "Bad gateway"))
        await failure_of(embedder.embed(TEXTS[:texts]))
        server.requests.clear()
        embeddings = await embedder.embed(TEXTS[:texts])
        np.testing.assert_array_equal(embeddings, server.vectors(TEXTS[:texts]))
        assert embeddings.flags.c_contiguous
        assert not embeddings.flags.writeable
        # A full request has no place for it.
        expected = [["livevec"], TEXTS[:10]] if texts == 10 else [[TEXTS[0], "livevec"]]
        assert [request.texts for request in server.requests] == expected
        await embedder.embed(["a"])
        assert server.requests[-1].texts == ["a"]


async def test_a_kept_connection_that_the_server_closed_costs_no_text(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.drops_connections = True
    for text in TEXTS:
        np.testing.assert_array_equal(await until_it_works(embedder, [text]), server.vectors([text]))


async def test_a_hung_server_is_waited_for(server: OpenAIServer) -> None:
    async with embedder_of(server, timeout_s=0.5) as embedder:
        await again(embedder.start)
        server.hold.clear()
        for texts in (["a"], TEXTS):
            failure = await failure_of(embedder.embed(texts))
            assert isinstance(failure, RetryLater)
            assert "did not answer in time" in str(failure)
        server.hold.set()
        assert len(await until_it_works(embedder, TEXTS)) == 40


async def test_an_answer_that_never_ends_is_not_waited_for(server: OpenAIServer) -> None:
    async with embedder_of(server, timeout_s=0.5) as embedder:
        await again(embedder.start)
        server.script.append(Reply(200, trickle=True))
        failure = await failure_of(asyncio.wait_for(embedder.embed(["a"]), 20))
        assert "did not answer in time" in str(failure)


async def test_a_server_that_fails_on_everything_is_waited_for(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    """Else an outage would send every row to the dead letters."""
    server.rule = lambda _: error(500, "The server had an error")
    for texts in [TEXTS, *([["a"]] * (2 * TRIES_MAX))]:
        assert isinstance(await failure_of(embedder.embed(texts)), RetryLater)
    server.rule = lambda _: None
    assert len(await until_it_works(embedder, ["a"])) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>welcome</html>",
        {"error": "Unexpected endpoint or method."},
        {"data": []},
        {"data": [{"index": 0}]},
        {"data": [{"embedding": [0.1] * 384}] * 2},
        {"data": [{"index": 1, "embedding": [0.1] * 384}]},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0, "embedding": "AAA"}]},
        {"data": [{"index": 0, "embedding": "not base64!"}]},
        {"data": [{"index": 0, "embedding": [[0.1] * 384]}]},
        {"data": {"embedding": [0.1] * 384}},
        [1, 2, 3],
    ],
    ids=lambda answer: json.dumps(answer, default=bytes.decode)[:40],
)
async def test_an_answer_that_is_none_is_told_and_waited_for(server: OpenAIServer, answer: Any) -> None:
    server.rule = lambda _: Reply(200, answer)
    async with embedder_of(server) as embedder:
        failure = await failure_of(embedder.start())
    assert isinstance(failure, RetryLater)
    assert "one vector for each text" in str(failure)
    assert "check that [embedding] url" in str(failure)


# ---- what fails for some texts


REFUSALS = [
    error(400, "'$.input' is invalid. This text: poison"),
    error(413, "batch size 2 > maximum allowed batch size 1"),
    error(422, "`inputs` must have less than 512 tokens"),
    error(429, "Request too large for hash-embedding on tokens per min (TPM): Limit 1, Requested 2"),
    error(500, "input is too large to process. increase the physical batch size"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: str(refusal.status))
async def test_a_refused_batch_is_split_and_a_refused_text_rejected(
    server: OpenAIServer, embedder: OpenAIEmbedder, refusal: Reply
) -> None:
    server.rule = refusing("poison", refusal)
    assert isinstance(await failure_of(embedder.embed(["a", "poison", "b"])), SplitBatch)
    failure = await failure_of(embedder.embed(["poison"]))
    assert isinstance(failure, RejectRow)
    assert failure.reason == "embedder_refused"
    assert "poison" not in str(failure)
    np.testing.assert_array_equal(await embedder.embed(["a", "b"]), server.vectors(["a", "b"]))


async def test_a_server_that_refuses_even_a_short_text_stops_the_process(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    """Else a setting that the model does not take would send every row to the dead letters."""
    server.rule = lambda _: error(400, "This model does not support that.")
    for texts in (TEXTS, ["a"]):
        assert isinstance(await failure_of(embedder.embed(texts)), StopProcess)


async def test_a_text_that_always_fails_inside_the_server_is_rejected_in_the_end(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.rule = refusing("poison", error(500, "unsupported value: NaN"))
    assert isinstance(await failure_of(embedder.embed(["a", "poison"])), SplitBatch)
    failures = [await failure_of(embedder.embed(["poison"])) for _ in range(TRIES_MAX)]
    assert [type(failure) for failure in failures] == [RetryLater] * (TRIES_MAX - 1) + [RejectRow]
    assert failures[-1].reason == "embedder_failed"  # type: ignore[attr-defined]


async def test_a_text_that_passes_is_not_held_against_the_next_failure(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    for _ in range(3):
        server.rule = refusing("unlucky", error(500, "The server had an error"))
        for _ in range(TRIES_MAX - 1):
            assert isinstance(await failure_of(embedder.embed(["unlucky"])), RetryLater)
        server.rule = lambda _: None
        await embedder.embed(["unlucky"])


async def test_a_batch_too_slow_for_the_time_out_is_split_while_others_pass(server: OpenAIServer) -> None:
    async with embedder_of(server, timeout_s=0.5) as embedder:
        await again(embedder.start)
        server.rule = lambda request: Reply(200, trickle=True) if "slow" in request.texts else None
        with pytest.raises(SplitBatch):
            await until_it_works(embedder, ["slow", *TEXTS])
        assert isinstance(await failure_of(embedder.embed(["slow"])), RetryLater)


@pytest.mark.parametrize("number", [None, 1e39])
async def test_a_vector_that_is_not_finite_is_never_answered(
    server: OpenAIServer, embedder: OpenAIEmbedder, number: Any
) -> None:
    good = server.vectors(["a"])[0].tolist()

    def rule(request: Any) -> Reply | None:
        if "poison" not in request.texts:
            return None
        rows = [[number, *good[1:]] if text == "poison" else good for text in request.texts]
        return Reply(200, {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]})

    server.rule = rule
    assert isinstance(await failure_of(embedder.embed(["a", "poison"])), SplitBatch)
    failure = await failure_of(embedder.embed(["poison"]))
    assert isinstance(failure, RejectRow)
    assert failure.reason == "embedding_not_finite"


@pytest.mark.parametrize("reply", [error(429, "Rate limit reached", retry_after="0"), REFUSALS[0]])
async def test_a_call_that_failed_in_part_pays_for_no_text_twice(server: OpenAIServer, reply: Reply) -> None:
    """Above the provider's limit of tokens per minute it would never end otherwise."""
    async with embedder_of(server, batch_texts_max=10) as embedder:
        await embedder.start()
        server.requests.clear()
        server.rule = refusing(TEXTS[25], reply)
        await failure_of(embedder.embed(TEXTS))
        server.rule = lambda _: None
        np.testing.assert_array_equal(await until_it_works(embedder, TEXTS), server.vectors(TEXTS))
        counts = {text: server.texts.count(text) for text in TEXTS}
        assert {text for text, count in counts.items() if count > 1} == set(TEXTS[20:30])
        # Kept once, for the call that failed: not a cache.
        await embedder.embed(TEXTS[:10])
        assert server.texts.count(TEXTS[0]) == 2


async def test_the_gravest_failure_of_a_call_s_requests_decides(server: OpenAIServer) -> None:
    refused, limited = REFUSALS[0], error(429, "Rate limit reached", retry_after="0")
    revoked = error(401, "revoked")
    replies = {"poison": refused, "limited": limited, "revoked": revoked}
    server.rule = lambda request: next((replies[text] for text in request.texts if text in replies), None)
    async with embedder_of(server, batch_texts_max=1) as embedder:
        await embedder.start()
        # One text of several is refused: the caller finds it in a half, and pays for no other again.
        assert isinstance(await failure_of(embedder.embed(["a", "poison"])), SplitBatch)
        assert isinstance(await failure_of(embedder.embed(["poison", "limited"])), RetryLater)
        assert isinstance(await failure_of(embedder.embed(["poison", "limited", "revoked"])), StopProcess)


async def test_a_call_that_is_given_up_frees_its_place(server: OpenAIServer) -> None:
    async with embedder_of(server, requests_max=1) as embedder:
        await embedder.start()
        server.hold.clear()
        call = asyncio.create_task(embedder.embed(["a"]))
        await until(lambda: server.waiting == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.hold.set()
        assert len(await asyncio.wait_for(embedder.embed(["b"]), 20)) == 1


async def test_calls_in_flight_fail_when_it_is_closed(server: OpenAIServer, embedder: OpenAIEmbedder) -> None:
    server.hold.clear()
    call = asyncio.create_task(embedder.embed(["a"]))
    await until(lambda: server.waiting == 1)
    await embedder.close()
    assert isinstance(await failure_of(asyncio.wait_for(call, 20)), RetryLater)


# ---- checks


async def test_checks_cost_no_request_while_the_last_minute_s_proof_holds(
    server: OpenAIServer, embedder: OpenAIEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        await embedder.check()
    assert server.requests == []
    monkeypatch.setattr(openai, "CHECK_INTERVAL_S", 0.0)
    await embedder.check()
    assert server.texts == ["livevec"]


async def test_a_check_after_a_failure_asks_the_server(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.script.append(error(429, "Rate limit reached", retry_after="0"))
    await failure_of(embedder.embed(["a"]))
    server.rule = lambda _: error(401, "revoked")
    assert isinstance(await failure_of(embedder.check()), StopProcess)


async def test_another_model_under_the_same_name_is_noticed_by_a_check(
    server: OpenAIServer, embedder: OpenAIEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "CHECK_INTERVAL_S", 0.0)
    await embedder.check()
    server.model_seed = "of other weights"
    with pytest.raises(StopProcess, match="replaced by another one"):
        await embedder.check()


async def test_another_model_after_a_restart_gives_no_vector(
    server: OpenAIServer, embedder: OpenAIEmbedder
) -> None:
    server.stop()
    await failure_of(embedder.embed(["a"]))
    server.model_seed = "of other weights"
    server.start()
    with pytest.raises(StopProcess, match="replaced by another one"):
        await until_it_works(embedder, ["a"])

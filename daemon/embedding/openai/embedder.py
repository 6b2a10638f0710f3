"""Embeddings over HTTP, from OpenAI or any server that speaks its API."""

import asyncio
import time
from collections.abc import Sequence
from hashlib import blake2b

import httpx
import numpy as np
import orjson

from daemon.embedding.embedder import Embeddings, EmbeddingSpace, Prompt
from daemon.embedding.openai.answers import PaidVectors, embeddings_of
from daemon.embedding.openai.failures import (
    KEEPS_THE_MODEL,
    TELLS_TO_WAIT,
    VENDOR_ERRORS,
    Cause,
    Failure,
    failure_class,
    failure_of_answer,
    failure_of_error,
    may_lie_in_the_texts,
    wait_s,
)
from daemon.embedding.openai.requests import RequestCutter
from daemon.errors import ConfigError, FailureClass, RejectRow, RetryLater, SplitBatch, StopProcess
from daemon.settings import EmbeddingSettings

PROBE = ("livevec",)
CHECK_INTERVAL_S = 60.0
"""A check costs tokens of PROBE; while nothing fails, one a minute is enough to notice another model."""
COSINE_MIN = 0.99
"""Between two vectors of PROBE by one model: hosted models do not answer a text twice with the same numbers."""
KEEPALIVE_S = 60.0
_SUSPECTS_MAX = 1_000


class OpenAIEmbedder:
    """Embeds by POST {url}/embeddings."""

    def __init__(self, settings: EmbeddingSettings) -> None:
        """Raise ConfigError where the URL or the tokenizer cannot be used; nothing is connected yet."""
        self._settings = settings
        self._where = f"model {settings.model!r} at {settings.url}"
        self._endpoint = settings.url.rstrip("/") + "/embeddings"
        try:
            httpx.URL(self._endpoint)
        except httpx.InvalidURL as error:
            message = f"embedding.url {settings.url!r} is no URL ({error}); write https://host/v1"
            raise ConfigError(message) from error
        self._prompts = {"document": settings.document_prompt, "query": settings.query_prompt}
        self._cutter = RequestCutter(
            settings.batch_texts_max,
            settings.request_tokens_max,
            settings.text_tokens_max,
            settings.tokenizer,
        )
        self._slots = asyncio.Semaphore(settings.requests_max)
        self._paid = PaidVectors(settings.dimension)
        self._tries: dict[int, int] = {}
        self._client: httpx.AsyncClient | None = None
        # What may have put another model under the same name sets this: a failure, a lost connection.
        self._space_in_doubt = True
        self._failing = False
        self._confirming = asyncio.Lock()
        self._confirmed_at_s = 0.0
        self._probed: Embeddings | None = None
        self._told_to_wait_until_s = 0.0

    @property
    def space(self) -> EmbeddingSpace:
        """The fingerprint is of the settings: no such server tells one of its weights.

        Where a text is cut is not part of it, since vectors of cut and of whole texts may be compared.
        """
        settings = self._settings
        identity = ("openai", settings.model, settings.dimension, settings.document_prompt)
        return EmbeddingSpace(
            model=settings.model,
            dimension=settings.dimension,
            max_tokens=settings.text_tokens_max,
            fingerprint=blake2b(repr(identity).encode(), digest_size=16).hexdigest(),
        )

    async def start(self) -> EmbeddingSpace:
        """Raise StopProcess where key, model or dimension do not fit, RetryLater where the server is away."""
        if self._client is None:
            settings = self._settings
            headers = {"Content-Type": "application/json"}
            if key := settings.api_key.get_secret_value():
                headers["Authorization"] = f"Bearer {key}"
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=settings.timeout_s,
                limits=httpx.Limits(
                    max_connections=settings.requests_max,
                    max_keepalive_connections=settings.requests_max,
                    keepalive_expiry=KEEPALIVE_S,
                ),
            )
        self._space_in_doubt = True
        await self.check()
        return self.space

    async def check(self) -> None:
        """Send a request only after a failure, and else once in CHECK_INTERVAL_S."""
        recent = time.monotonic() - self._confirmed_at_s < CHECK_INTERVAL_S
        if recent and not self._space_in_doubt and not self._failing:
            return
        async with self._slots:
            self._wait_as_told()
            self._space_in_doubt = True
            await self._confirm_space()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def embed(self, texts: Sequence[str], *, prompt: Prompt = "document") -> Embeddings:
        """Return float32 [len(texts), dimension], read-only; sent as several requests where the limits say so.

        Raises:
            RetryLater: the server is away, overloaded or limits the rate; with the wait that it told.
            SplitBatch: refused or too slow as a whole.
            RejectRow: this one text cannot be embedded.
            StopProcess: key, model or dimension do not fit, or another model answers under its name.
        """
        if not texts:
            return np.empty((0, self._settings.dimension), np.float32)
        prefixed = [self._prompts[prompt] + text for text in texts]
        rows = self._paid.take(prefixed)
        missing = [text for text in prefixed if text not in rows]
        requests = await self._cutter.requests(missing) if missing else []
        answers = await asyncio.gather(*map(self._request, requests), return_exceptions=True)
        if len(answers) == 1 and not rows and not isinstance(answers[0], BaseException):
            return answers[0]
        at = 0
        failures = []
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, BaseException):
                failures.append(answer)
            else:
                rows.update(zip(missing[at : at + len(request)], answer, strict=True))
            at += len(request)
        if failures:
            self._paid.keep(rows)
            raise _gravest(failures, len(texts))
        embeddings = np.stack([rows[text] for text in prefixed])
        embeddings.setflags(write=False)
        return embeddings

    async def _request(self, texts: Sequence[str]) -> Embeddings:
        async with self._slots:
            self._wait_as_told()
            # Where it fits the probe goes along: of a server that fails now and then it takes one good answer, not two.
            along = PROBE if self._space_in_doubt and len(texts) < self._settings.batch_texts_max else ()
            if not along:
                await self._confirm_space()
            answer = await self._post([*texts, *along])
            if isinstance(answer, Failure):
                raise await self._judged(answer, texts)
            if along:
                self._compare(answer[-1])
        self._tries.pop(hash(texts[0]), None)
        return answer[: len(texts)]

    async def _post(self, texts: Sequence[str]) -> Embeddings | Failure:
        client, settings = self._client, self._settings
        if client is None:
            raise RetryLater(f"{self._where} is not connected; wait for start()")
        body: dict[str, object] = {
            "model": settings.model,
            "input": [text.encode("utf-8", "replace").decode() for text in texts],
            "encoding_format": "base64",
        }
        if settings.request_dimension:
            body["dimensions"] = settings.dimension
        answer: Embeddings | Failure
        try:
            # httpx bounds each step; a server that sends a byte now and then would be waited for without an end.
            async with asyncio.timeout(settings.timeout_s):
                response = await client.post(self._endpoint, content=orjson.dumps(body))
        except TimeoutError:
            answer = Failure(Cause.TIMED_OUT)
        except VENDOR_ERRORS as error:
            answer = failure_of_error(error)
        else:
            if response.status_code == httpx.codes.OK:
                answer = embeddings_of(response.content, len(texts), settings.dimension)
            else:
                answer = failure_of_answer(response, time.time())
        if isinstance(answer, Failure):
            self._note(answer)
        else:
            self._failing = False
        return answer

    def _note(self, answer: Failure) -> None:
        """Note what a failure tells about the server, whichever request it was for."""
        self._failing |= answer.cause is not Cause.REFUSED
        self._space_in_doubt |= answer.cause not in KEEPS_THE_MODEL
        if answer.cause in TELLS_TO_WAIT:
            until_s = time.monotonic() + wait_s(answer)
            self._told_to_wait_until_s = max(self._told_to_wait_until_s, until_s)

    def _wait_as_told(self) -> None:
        """Raise RetryLater before the time that the server told: a request would count against its limits."""
        left_s = self._told_to_wait_until_s - time.monotonic()
        if left_s > 0:
            raise RetryLater(f"{self._where} has told to wait; is tried again when that is over", left_s)

    async def _confirm_space(self) -> None:
        """Raise StopProcess where another model answers than at the start; of several callers one asks."""
        async with self._confirming:
            if self._space_in_doubt and (failure := await self._probe()) is not None:
                raise failure_class(failure, texts=0, where=self._where)

    async def _probe(self) -> Failure | None:
        answer = await self._post(PROBE)
        if isinstance(answer, Failure):
            return answer
        self._compare(answer[0])
        return None

    def _compare(self, probed: Embeddings) -> None:
        """Raise StopProcess where the vector of PROBE is not that of the model found at the start."""
        vector = probed / max(float(np.linalg.norm(probed)), 1e-12)
        if self._probed is None:
            self._probed = vector
        cosine = float(vector @ self._probed)
        if cosine < COSINE_MIN:
            raise StopProcess(
                f"{self._where} was replaced by another one while livevec ran (its vector of the same word has cosine "
                f"{cosine:.3f} to the former one's); bring the former one back, or reindex under another model's name"
            )
        self._space_in_doubt = False
        self._confirmed_at_s = time.monotonic()

    async def _judged(self, failure: Failure, texts: Sequence[str]) -> FailureClass:
        """Return whether the server or the request is at fault: a server that embeds PROBE right now is not."""
        if not may_lie_in_the_texts(failure, len(texts)):
            return failure_class(failure, texts=len(texts), where=self._where)
        probe_failure = await self._probe()
        if probe_failure is not None:
            return failure_class(probe_failure, texts=0, where=self._where)
        suspect = hash(texts[0])
        tries = self._tries.pop(suspect, 0) + 1
        verdict = failure_class(failure, texts=len(texts), where=self._where, tries=tries)
        if len(texts) == 1 and isinstance(verdict, RetryLater):
            self._tries[suspect] = tries
            if len(self._tries) > _SUSPECTS_MAX:
                del self._tries[next(iter(self._tries))]
        return verdict


def _gravest(failures: Sequence[BaseException], texts: int) -> BaseException:
    """Return the failure that decides a call: what is no verdict, what ends the process, what to wait for."""
    no_verdicts = [failure for failure in failures if not isinstance(failure, FailureClass)]
    stops = [failure for failure in failures if isinstance(failure, StopProcess)]
    if no_verdicts or stops:
        return [*no_verdicts, *stops][0]
    waits = [failure for failure in failures if isinstance(failure, RetryLater)]
    if waits:
        return max(waits, key=lambda failure: failure.retry_after_s)
    failure = failures[0]
    return SplitBatch(str(failure)) if texts > 1 and isinstance(failure, RejectRow) else failure

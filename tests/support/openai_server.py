"""A real HTTP server that honours OpenAI's embeddings API, embeds by hashing, and fails as it is told to."""

import base64
import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MODEL = "hash-embedding"
INPUTS_MAX = 2048


@dataclass(frozen=True)
class Reply:
    """`body`: bytes as they are, all else as JSON. `trickle`: bytes come one by one, for ever."""

    status: int
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    trickle: bool = False


@dataclass(frozen=True)
class Request:
    """One request that arrived; `client`: address of the connection it came over."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    client: tuple[str, int]

    @property
    def texts(self) -> list[str]:
        return list(self.body["input"])


Rule = Callable[[Request], Reply | None]


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it; `retry_after` becomes the header Retry-After."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def refusing(word: str, reply: Reply) -> Rule:
    """Answers `reply` to requests with a text that has this word in it."""
    return lambda request: reply if any(word in text for text in request.texts) else None


class OpenAIServer:
    """Embeds a text as numbers that follow from its hash and `model_seed`.

    Attributes:
        script: replies to the next requests, before anything else.
        rule: replies to a request where it wants to; None otherwise.
        hold: while cleared, requests are taken but not answered.
        form: of vectors; many servers send floats whatever was asked for.
        drops_connections: closes each connection after an answer, without a word.
    """

    def __init__(self, *, dimension: int = 384, api_key: str = "", can_shorten: bool = False) -> None:
        self.dimension = dimension
        self.api_key = api_key
        self.can_shorten = can_shorten
        self.model_seed = ""
        self.form: Literal["as asked", "floats"] = "as asked"
        self.shuffled = False
        self.with_index = True
        self.drops_connections = False
        self.script: deque[Reply] = deque()
        self.rule: Rule = lambda _: None
        self.hold = threading.Event()
        self.hold.set()
        self.requests: list[Request] = []
        self.answered = 0
        self._port = 0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def texts(self) -> list[str]:
        """All texts that arrived so far."""
        return [text for request in list(self.requests) for text in request.texts]

    @property
    def waiting(self) -> int:
        """Requests that were taken and not answered yet."""
        return len(self.requests) - self.answered

    def start(self) -> None:
        """Also after `stop`, on the same port."""
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Nothing listens any more, and open connections are closed."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._server = None

    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """What it answers to these texts."""
        return np.array([self._vector(text) for text in texts], np.float32)

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        seed = blake2b(f"{self.model_seed}|{text}".encode(), digest_size=8).digest()
        vector = np.random.default_rng(int.from_bytes(seed)).standard_normal(self.dimension)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def reply_to(self, request: Request) -> Reply:
        self.requests.append(request)
        self.hold.wait()
        if self.script:
            return self.script.popleft()
        return self.rule(request) or self._refusal(request) or self._embeddings(request)

    def _refusal(self, request: Request) -> Reply | None:
        body = request.body
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            return error(401, f"Incorrect API key provided: {given}.", "invalid_api_key")
        if body["model"] != MODEL:
            return error(404, f"The model `{body['model']}` does not exist.", "model_not_found")
        if not body["input"] or len(body["input"]) > INPUTS_MAX or "" in body["input"]:
            return error(400, "'$.input' is invalid.")
        if "dimensions" in body and not self.can_shorten:
            return error(400, "This model does not support specifying dimensions.")
        return None

    def _embeddings(self, request: Request) -> Reply:
        vectors = self.vectors(request.texts)[:, : request.body.get("dimensions", self.dimension)]
        base64_asked = self.form == "as asked" and request.body.get("encoding_format") == "base64"
        items = [
            {
                "object": "embedding",
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
                if base64_asked
                else row.tolist(),
            }
            | ({"index": index} if self.with_index else {})
            for index, row in enumerate(vectors)
        ]
        if self.shuffled:
            random.shuffle(items)
        tokens = sum(len(text) for text in request.texts) // 4
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Reply(200, {"object": "list", "data": items, "model": MODEL, "usage": usage})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for request in list(self.open):
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else an answer in two writes waits for the client's delayed acknowledgement.
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/v1/embeddings":
                self._send(error(404, f"Invalid URL (POST {self.path})"))
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = server.reply_to(Request(json.loads(content), headers, self.client_address))
            server.answered += 1
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in ({"content-type": "application/json"} | dict(reply.headers)).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body) + (1_000_000 if reply.trickle else 0)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            ticks = threading.Event()
            while reply.trickle and not ticks.wait(0.02):
                self.wfile.write(b" ")
                self.wfile.flush()
            self.close_connection = self.close_connection or server.drops_connections

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    return Handler


@contextmanager
def openai_server(**settings: Any) -> Iterator[OpenAIServer]:
    """Starts it, and stops it at the end."""
    server = OpenAIServer(**settings)
    server.start()
    try:
        yield server
    finally:
        server.hold.set()
        server.stop()

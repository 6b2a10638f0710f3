"""A Triton that can be slowed down: a proxy that passes gRPC calls through to a real one.

`python -m tests.bench.slow_embedder SETTINGS`. While it is slow, inferences run one after another and each takes
`factor` times its own time, as on a slower device: a request costs factor x (a + b x tokens), and sending several at
once gains nothing.
"""

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from daemon.cli.bench.setting import free_port
from daemon.cli.bench.steps import Bench
from daemon.cli.child import ChildProcess
from daemon.cli.console import Steps
from daemon.config import default_home
from daemon.embedding.triton.embedder import CHANNEL_OPTIONS

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_GRACE_S = 1.0
Call = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class SlowDown:
    """A request that starts within these times (monotonic clock) takes `factor` times as long."""

    factor: float
    begins_at_s: float
    ends_at_s: float

    def factor_at(self, now_s: float) -> float:
        return self.factor if self.begins_at_s <= now_s < self.ends_at_s else 1.0


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Serve `address` before the Triton at `url`; the file `slow_down` is read before each inference."""

    url: str
    address: str
    slow_down: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def write_slow_down(path: Path, slow_down: SlowDown | None) -> None:
    """Tell a running proxy when it is slow; None: never."""
    written = path.with_suffix(".new")
    written.write_text(json.dumps(asdict(slow_down) if slow_down else None), "utf-8")
    written.rename(path)


def read_slow_down(path: Path) -> SlowDown | None:
    with contextlib.suppress(FileNotFoundError):
        content = json.loads(path.read_text("utf-8"))
        return SlowDown(**content) if content else None
    return None


class SlowedInference:
    """Inferences at the speed of the moment.

    Args:
        factor: returns how many times as long an inference takes now.
    """

    def __init__(self, factor: Callable[[], float]) -> None:
        self._factor = factor
        self._busy = asyncio.Lock()

    async def infer(self, call: Call, request: bytes) -> bytes:
        if self._factor() == 1.0:
            return await call(request)
        async with self._busy:
            factor = self._factor()
            began_s = time.monotonic()
            reply = await call(request)
            await asyncio.sleep((factor - 1) * (time.monotonic() - began_s))
            return reply


class _PassThrough(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes every unary method through, its messages as bytes."""

    def __init__(self, channel: grpc.aio.Channel, inference: SlowedInference) -> None:
        self._channel = channel
        self._inference = inference

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method
        upstream = self._channel.unary_unary(method)

        async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            async def call(message: bytes) -> bytes:
                reply: bytes = await upstream(message, timeout=context.time_remaining())
                return reply

            try:
                return await (self._inference.infer(call, request) if method == _INFER else call(request))
            except grpc.RpcError as error:
                await context.abort(error.code(), error.details())
                raise

        return grpc.unary_unary_rpc_method_handler(handle)


async def serve(settings: ProxySettings) -> None:
    """Serve until SIGTERM."""
    schedule = Path(settings.slow_down)

    def factor() -> float:
        slow_down = read_slow_down(schedule)
        return slow_down.factor_at(time.monotonic()) if slow_down else 1.0

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with grpc.aio.insecure_channel(settings.url, options=CHANNEL_OPTIONS) as channel:
        server = grpc.aio.server(options=CHANNEL_OPTIONS)
        server.add_generic_rpc_handlers((_PassThrough(channel, SlowedInference(factor)),))
        server.add_insecure_port(settings.address)
        await server.start()
        await stopping.wait()
        await server.stop(_GRACE_S)


class SlowEmbedder:
    """A proxy that serves `address` in a process of its own."""

    def __init__(self, address: str, schedule: Path) -> None:
        self.address = address
        self._schedule = schedule

    def slow_down(self, times: SlowDown | None) -> None:
        """Set when it is slow from now on; None: never."""
        write_slow_down(self._schedule, times)


@contextlib.contextmanager
def slow_embedder_running(bench: Bench, steps: Steps) -> Iterator[SlowEmbedder]:
    """A running proxy before the embedder of the configuration."""
    port = free_port()
    schedule, path = bench.folder / "slow_down.json", bench.folder / "slow_embedder.json"
    settings = ProxySettings(bench.setting.config.embedding.url, f"127.0.0.1:{port}", str(schedule))
    path.write_text(settings.to_json(), "utf-8")
    command = [sys.executable, "-m", "tests.bench.slow_embedder", str(path)]
    log = default_home() / "logs" / "bench-slow-embedder.log"
    with contextlib.ExitStack() as cleanup:
        with steps.step("start the embedder that can be slow"):
            child = cleanup.enter_context(ChildProcess(command, log, "the slow embedder"))
            child.wait_until(lambda: _listens(port), "did not start")
        yield SlowEmbedder(settings.address, schedule)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    asyncio.run(serve(ProxySettings.from_json(Path(sys.argv[1]).read_text("utf-8"))))

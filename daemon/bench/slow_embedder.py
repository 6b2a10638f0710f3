"""A Triton that can be slowed down: passes gRPC calls through to a real one.

`python -m daemon.bench.slow_embedder SPEC`. While it is slow, inferences run one after another and each takes `factor`
times its own time, as on a slower device: a request costs factor x (a + b x tokens), and sending several at once
gains nothing.
"""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from daemon.embedding.triton.embedder import CHANNEL_OPTIONS

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_GRACE_S = 1.0
Call = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class SlowDown:
    """By the monotonic clock; a request that starts within these times takes `factor` times as long."""

    factor: float
    begins_at_s: float
    ends_at_s: float

    def factor_at(self, now_s: float) -> float:
        return self.factor if self.begins_at_s <= now_s < self.ends_at_s else 1.0


@dataclass(frozen=True, slots=True)
class Spec:
    """Serves `address` before the Triton at `url`; `slow_down` is a file that is looked at before each inference."""

    url: str
    address: str
    slow_down: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def write_slow_down(path: Path, slow_down: SlowDown | None) -> None:
    """Tell a running embedder when it is slow; None: never."""
    written = path.with_suffix(".new")
    written.write_text(json.dumps(asdict(slow_down) if slow_down else None), "utf-8")
    written.rename(path)


def read_slow_down(path: Path) -> SlowDown | None:
    with contextlib.suppress(FileNotFoundError):
        content = json.loads(path.read_text("utf-8"))
        return SlowDown(**content) if content else None
    return None


class Pace:
    """Inferences at the pace of the moment.

    Args:
        factor: how many times as long one takes now.
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
    """Any unary method, its messages as bytes."""

    def __init__(self, channel: grpc.aio.Channel, pace: Pace) -> None:
        self._channel = channel
        self._pace = pace

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method
        upstream = self._channel.unary_unary(method)

        async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            async def call(message: bytes) -> bytes:
                reply: bytes = await upstream(message, timeout=context.time_remaining())
                return reply

            try:
                return await (self._pace.infer(call, request) if method == _INFER else call(request))
            except grpc.RpcError as error:
                await context.abort(error.code(), error.details())
                raise

        return grpc.unary_unary_rpc_method_handler(handle)


async def serve(spec: Spec) -> None:
    """Until SIGTERM."""
    schedule = Path(spec.slow_down)

    def factor() -> float:
        slow_down = read_slow_down(schedule)
        return slow_down.factor_at(time.monotonic()) if slow_down else 1.0

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with grpc.aio.insecure_channel(spec.url, options=CHANNEL_OPTIONS) as channel:
        server = grpc.aio.server(options=CHANNEL_OPTIONS)
        server.add_generic_rpc_handlers((_PassThrough(channel, Pace(factor)),))
        server.add_insecure_port(spec.address)
        await server.start()
        await stopping.wait()
        await server.stop(_GRACE_S)


if __name__ == "__main__":
    asyncio.run(serve(Spec.from_json(Path(sys.argv[1]).read_text("utf-8"))))

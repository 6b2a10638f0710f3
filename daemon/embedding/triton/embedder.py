"""Embeddings from a Triton server, over gRPC.

Speaks Triton's protocol with its generated messages: the client class around them costs a fifth more per call.
"""

import asyncio
import struct
from collections.abc import Sequence

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from daemon.embedding.embedder import Embeddings, EmbeddingSpace, Prompt
from daemon.embedding.triton.failures import VENDOR_ERRORS, TritonCause, cause_of, failure_of
from daemon.errors import FailureClass, RejectRow, RetryLater, SplitBatch, StopProcess

RELOAD_TIMEOUT_S = 60.0
PROBE = ("livevec",)
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The default backs off to 2 minutes; Triton is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Notices a peer that vanished without a word.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
_length_prefix = struct.Struct("<I").pack


class TritonEmbedder:
    """Embeds with a model that takes TEXT (BYTES [-1, 1]) and gives EMBEDDING (FP32 [-1, dimension])."""

    def __init__(
        self, url: str, model: str, *, dimension: int | None, timeout_s: float = 10.0, requests_max: int = 4
    ) -> None:
        """
        Args:
            url: Triton's gRPC `host:port`.
            dimension: what the index was made for; a model that differs is refused. None: whatever it is.
            timeout_s: longest wait for one request.
            requests_max: requests in flight at once; further calls wait.
        """
        self._url = url
        self._model = model
        self._where = f"model {model!r} at {url}"
        self._dimension = dimension
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(requests_max)
        self._space: EmbeddingSpace | None = None
        # Set by what may have put another model under the same name: a failure, a new connection.
        self._space_in_doubt = False
        self._reload: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._channel: grpc.aio.Channel | None = None

    @property
    def space(self) -> EmbeddingSpace:
        if self._space is None:
            raise RetryLater(f"{self._where} has not been reached yet; wait for start()")
        return self._space

    async def start(self) -> EmbeddingSpace:
        """Raise StopProcess where the model is missing or does not fit, RetryLater where Triton is away."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._url, options=CHANNEL_OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            self._watch = asyncio.create_task(self._watch_connection(self._channel))
        await self.check()
        return self.space

    async def check(self) -> None:
        self._space_in_doubt = True
        await self.embed(PROBE)

    async def close(self) -> None:
        for task in (self._reload, self._watch):
            if task is not None:
                task.cancel()
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def embed(self, texts: Sequence[str], *, prompt: Prompt = "document") -> Embeddings:
        """Return float32 [len(texts), dimension], read-only; `prompt` picks the prefix that the model was trained with.

        Raises:
            RetryLater: Triton is away, overloaded, or has just been told to reload a model that had died.
            SplitBatch: refused or too slow as a whole.
            RejectRow: this one text cannot be embedded.
            StopProcess: the model is gone, or another one answers under its name.
        """
        if not texts:
            return np.empty((0, self._dimension or 0), np.float32)
        if self._channel is None:
            raise RetryLater(f"{self._where} is not connected; wait for start()")
        async with self._slots:
            try:
                if self._space_in_doubt or self._space is None:
                    await self._confirm_space()
                response = await self._infer(texts, prompt)
            except VENDOR_ERRORS as error:
                raise await self._failure(error, len(texts)) from error
        return self._embeddings(response, len(texts))

    async def _infer(
        self, texts: Sequence[str], prompt: Prompt = "document"
    ) -> service_pb2.ModelInferResponse:
        request = service_pb2.ModelInferRequest(model_name=self._model)
        if prompt != "document":
            request.parameters["prompt"].string_param = prompt
        tensor = request.inputs.add()
        tensor.name = "TEXT"
        tensor.datatype = "BYTES"
        tensor.shape.extend((len(texts), 1))
        parts: list[bytes] = []
        for text in texts:
            data = text.encode("utf-8", "replace")
            parts += (_length_prefix(len(data)), data)
        request.raw_input_contents.append(b"".join(parts))
        return await self._stub.ModelInfer(request, timeout=self._timeout_s)

    def _embeddings(self, response: service_pb2.ModelInferResponse, texts: int) -> Embeddings:
        shape = tuple(response.outputs[0].shape) if response.outputs else ()
        content = response.raw_output_contents[0] if response.raw_output_contents else b""
        if shape != (texts, self._dimension) or len(content) != 4 * texts * (self._dimension or 0):
            raise StopProcess(
                f"{self._where} answered {texts} texts with a tensor of shape {shape}, not of "
                f"{(texts, self._dimension)}; load the model that the index was made with"
            )
        embeddings = np.frombuffer(content, np.float32).reshape(texts, -1)
        if not np.isfinite(embeddings).all():
            if texts > 1:
                raise SplitBatch(
                    f"{self._where} gave vectors that are not finite; halves of the batch may pass"
                )
            raise RejectRow(
                f"{self._where} gave a vector that is not finite; report the text to the model's maker",
                reason="embedding_not_finite",
            )
        return embeddings

    async def _confirm_space(self) -> None:
        """Read the model's configuration; raises StopProcess where it is not the space we write into."""
        request = service_pb2.ModelConfigRequest(name=self._model)
        response = await self._stub.ModelConfig(request, timeout=self._timeout_s)
        space = _space_of(response.config, self._where)
        if self._dimension is None:
            self._dimension = space.dimension
        if space.dimension != self._dimension:
            raise StopProcess(
                f"{self._where} gives {space.dimension} numbers but [embedding] dimension is {self._dimension}; "
                f"load another model, or set dimension = {space.dimension} and build the index anew"
            )
        if self._space is not None and space != self._space:
            raise StopProcess(
                f"{self._where} was replaced by another one while livevec ran ({space.fingerprint or 'unnamed'} "
                f"after {self._space.fingerprint or 'unnamed'}); load the former one, or restart and reindex"
            )
        self._space = space
        self._space_in_doubt = False

    async def _watch_connection(self, channel: grpc.aio.Channel) -> None:
        """Doubt the model after each new connection: a Triton restarted meanwhile may have another one."""
        while True:
            state = channel.get_state()
            await channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY:
                self._space_in_doubt = True

    async def _failure(self, error: Exception, texts: int) -> FailureClass:
        cause = cause_of(error)
        if cause is TritonCause.NOT_LOADED and not await self._is_in_repository():
            return StopProcess(
                f"{self._where} is not in Triton's model repository; build it there, or correct [embedding] model"
            )
        if cause in (TritonCause.NOT_LOADED, TritonCause.STUB_DEAD):
            await self._reload_once()
        self._space_in_doubt |= cause is not TritonCause.REFUSED
        alive = cause is TritonCause.MODEL_FAILED and await self._is_alive()
        return failure_of(cause, texts=texts, model_alive=alive, where=self._where)

    async def _is_alive(self) -> bool:
        try:
            await self._infer(PROBE)
        except VENDOR_ERRORS:
            return False
        return True

    async def _is_in_repository(self) -> bool:
        """Return whether the model is there; true also where Triton does not say."""
        try:
            index = await self._stub.RepositoryIndex(
                service_pb2.RepositoryIndexRequest(), timeout=self._timeout_s
            )
        except VENDOR_ERRORS:
            return True
        return any(model.name == self._model for model in index.models)

    async def _reload_once(self) -> None:
        """Wait for a reload of the model, which all callers share; one cancelled caller does not end it."""
        if self._reload is None or self._reload.done():
            self._reload = asyncio.create_task(self._unload_and_load())
        await asyncio.shield(self._reload)

    async def _unload_and_load(self) -> None:
        """Unload and load the model, which brings it back after its stub died; load alone does nothing.

        The unload of such a model never ends (Triton 2.51 shows UNLOADING for ever), so nothing waits for it.
        """
        if await self._is_alive():
            return  # Another daemon was faster, or the failed request was of the time before.
        name = self._model
        try:
            await self._stub.RepositoryModelUnload(
                service_pb2.RepositoryModelUnloadRequest(model_name=name), timeout=RELOAD_TIMEOUT_S
            )
            await self._stub.RepositoryModelLoad(
                service_pb2.RepositoryModelLoadRequest(model_name=name), timeout=RELOAD_TIMEOUT_S
            )
        except VENDOR_ERRORS:
            return  # Not in explicit mode, or away: the failure that led here says what to do.


def _space_of(config: model_config_pb2.ModelConfig, where: str) -> EmbeddingSpace:
    inputs = {tensor.name: tensor.data_type for tensor in config.input}
    outputs = {tensor.name: tensor for tensor in config.output}
    embedding = outputs.get("EMBEDDING")
    if (
        inputs != {"TEXT": model_config_pb2.TYPE_STRING}
        or embedding is None
        or embedding.data_type != model_config_pb2.TYPE_FP32
        or len(embedding.dims) != 1
    ):
        raise StopProcess(
            f"{where} does not take TEXT (BYTES) and give EMBEDDING (FP32); "
            "name a text embedder in [embedding] model"
        )
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    return EmbeddingSpace(
        model=config.name,
        dimension=int(embedding.dims[0]),
        max_tokens=int(parameters.get("max_tokens") or 0),
        fingerprint=parameters.get("fingerprint", ""),
    )

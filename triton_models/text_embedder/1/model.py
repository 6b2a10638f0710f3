"""Triton's side of the text embedder: TEXT (BYTES) in, EMBEDDING (FP32) out.

Runs inside Triton's Python stub with this folder on its path.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from text_encoder import TextEncoder
from text_tokenizer import Tokens


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._encoder = TextEncoder(Path(args["model_repository"]) / args["model_version"])
        pb_utils.Logger.log_info(f"{args['model_instance_name']}: {self._encoder.description}")
        self._encoder.warm_up()

    def execute(self, requests: list[Any]) -> None:
        """Answer each request as soon as it is embedded: it need not wait for those that were joined with it."""
        for group in self._groups(requests):
            try:
                embeddings = self._encoder.embed_tokens([ids for _, tokens in group for ids in tokens])
            except Exception:  # noqa: BLE001
                # One bad request must not fail its neighbours.
                for request, tokens in group:
                    self._answer_alone(request, tokens)
                continue
            ends = np.cumsum([len(tokens) for _, tokens in group])
            for (request, _), part in zip(group, np.split(embeddings, ends[:-1]), strict=True):
                _send(request, pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", part)]))

    def _groups(self, requests: list[Any]) -> Iterator[list[tuple[Any, list[Tokens]]]]:
        """Yield requests that together are enough for all cores, with their tokens."""
        group: list[tuple[Any, list[Tokens]]] = []
        count = 0
        for request in requests:
            try:
                tokens = self._encoder.tokenizer.tokenize(self._texts(request))
            except Exception as error:  # noqa: BLE001
                _send_error(request, error)
                continue
            size = sum(map(len, tokens))
            if group and count + size > self._encoder.parallel_tokens:
                yield group
                group, count = [], 0
            group.append((request, tokens))
            count += size
        if group:
            yield group

    def _texts(self, request: Any) -> list[bytes]:
        texts: list[bytes] = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel().tolist()
        prompted: list[bytes] = self._encoder.tokenizer.prompted(texts, request.parameters())
        return prompted

    def _answer_alone(self, request: Any, tokens: list[Tokens]) -> None:
        try:
            embeddings = self._encoder.embed_tokens(tokens)
        except Exception as error:  # noqa: BLE001
            _send_error(request, error)
        else:
            _send(request, pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", embeddings)]))


def _send(request: Any, response: Any) -> None:
    request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _send_error(request: Any, error: Exception) -> None:
    # The class alone: a message could carry the text.
    message = f"embedding the request's texts failed with {type(error).__name__}"
    _send(
        request,
        pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)),
    )

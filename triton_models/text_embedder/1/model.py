"""Triton's side of the text embedder: TEXT (BYTES) in, EMBEDDING (FP32) out.

Runs inside Triton's Python stub with this folder on its path.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from text_encoder import TextEncoder


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._encoder = TextEncoder(Path(args["model_repository"]) / args["model_version"])
        pb_utils.Logger.log_info(f"{args['model_instance_name']}: {self._encoder.description}")
        self._encoder.warm_up()

    def execute(self, requests: list[Any]) -> list[Any]:
        try:
            texts = [self._texts(request) for request in requests]
            embeddings = self._encoder.embed([text for request_texts in texts for text in request_texts])
        except Exception:  # noqa: BLE001
            # One bad request must not fail those that Triton joined with it: each gets its own answer.
            return [self._answer_alone(request) for request in requests]
        ends = np.cumsum([len(request_texts) for request_texts in texts])
        return [_response(part) for part in np.split(embeddings, ends[:-1])]

    def _texts(self, request: Any) -> list[bytes]:
        texts: list[bytes] = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel().tolist()
        prompt = self._encoder.prompts[json.loads(request.parameters() or "{}").get("prompt", "document")]
        return [prompt + text for text in texts] if prompt else texts

    def _answer_alone(self, request: Any) -> Any:
        try:
            return _response(self._encoder.embed(self._texts(request)))
        except Exception as error:  # noqa: BLE001
            # The class alone: a message could carry the text.
            message = f"embedding the request's texts failed with {type(error).__name__}"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            )


def _response(embeddings: np.ndarray) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", embeddings)])

"""Triton's side of the tokenizer: TEXT (BYTES) in, input_ids and attention_mask (INT32 [-1, length]) out.

Runs inside Triton's Python stub with this folder on its path.
"""

from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from padding import padded
from text_tokenizer import TextTokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._tokenizer = TextTokenizer(Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            texts: list[bytes] = (
                pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel().tolist()
            )
            tokens = self._tokenizer.tokenize(self._tokenizer.prompted(texts, request.parameters()))
            ids, mask = padded(tokens, self._tokenizer.max_tokens)
        except Exception as error:  # noqa: BLE001
            # One bad request must not fail its neighbours. The class alone: a message could carry the text.
            message = f"tokenising the request's texts failed with {type(error).__name__}"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            )
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)]
        )

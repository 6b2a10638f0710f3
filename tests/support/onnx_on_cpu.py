"""Stands in for Triton's ONNX Runtime backend, which the embedded Triton lacks: a Python model around the same file."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self._session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        inputs = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("input_ids", "attention_mask")
        }
        (vectors,) = self._session.run(["EMBEDDING"], inputs)
        return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", vectors)])

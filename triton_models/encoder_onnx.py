"""A BERT-family encoder as an ONNX file, made from its tensors without torch, for Triton's ONNX Runtime backend.

For a GPU: texts are padded to one length, because TensorRT fuses attention over a [text, position] grid. In
float16 all but the normalisations and the pooling, which sum up squares and hundreds of tokens.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from triton_models.source import ModelSource, ModelSourceError
from triton_models.weights import WORDS, EncoderTensors

Precision = Literal["fp16", "fp32"]

# The first with LayerNormalization: TensorRT runs this operator in float32 inside a float16 network, while one
# put together from powers and means overflows. ONNX Runtime has read both numbers since 1.12.
OPSET = 17
IR_VERSION = 8
# An ONNX file is a message of protocol buffers, which ends at 2 GiB; the graph itself needs little of it.
WEIGHTS_BYTES_MAX = 2**31 - 2**24
MASKED = -1e4  # added to attention scores of padding; finite in float16


def save_onnx(source: ModelSource, path: Path, precision: Precision = "fp16") -> None:
    """Write and check `path`; see `onnx_model`."""
    model = onnx_model(source, precision)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def onnx_model(source: ModelSource, precision: Precision) -> onnx.ModelProto:
    """Return a graph with the inputs input_ids and attention_mask, int32 [B, L], and the output EMBEDDING, float32
    [B, dimension]."""
    model = _Graph(source, precision).model()
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > WEIGHTS_BYTES_MAX:
        raise ModelSourceError(
            f"{source.folder} has over 2 GiB of weights in {precision}, more than one ONNX file holds; choose a "
            "smaller model, or build it for CPU alone"
        )
    return model


class _Graph:
    """Builds the graph; values are known by their names, as in ONNX itself."""

    def __init__(self, source: ModelSource, precision: Precision) -> None:
        self._source = source
        self._shape = source.shape
        self._tensors = EncoderTensors(source)
        self._half = precision == "fp16"
        self._type = TensorProto.FLOAT16 if self._half else TensorProto.FLOAT
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        mask = self._add("Cast", "attention_mask", to=TensorProto.FLOAT)
        hidden = self._embeddings()
        bias = self._attention_bias(mask)
        for layer in range(self._shape.layers):
            hidden = self._layer(hidden, bias, f"encoder.layer.{layer}.")
        embedding = self._pooled(self._add("Cast", hidden, to=TensorProto.FLOAT), mask)
        if self._source.normalize:
            embedding = self._normalized(embedding)
        self._add("Identity", embedding, name="EMBEDDING")
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info(
            "EMBEDDING", TensorProto.FLOAT, ["batch", self._shape.hidden_size]
        )
        graph = helper.make_graph(
            self._nodes, "text_encoder", inputs, [output], list(self._initializers.values())
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="livevec",
        )

    def _add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def _constant(self, name: str, values: npt.ArrayLike, dtype: type[np.generic]) -> str:
        if name not in self._initializers:
            array = np.asarray(values, dtype, order="C")
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _integers(self, *values: int) -> str:
        return self._constant("int_" + "_".join(map(str, values)), values, np.int64)

    def _float32(self, value: float) -> str:
        return self._constant(f"float32_{value}", value, np.float32)

    def _weights(self, name: str, values: npt.NDArray[np.float32]) -> str:
        if not self._half:
            return self._constant(name, values, np.float32)
        if not np.abs(values).max(initial=0) <= np.finfo(np.float16).max:
            raise ModelSourceError(
                f"{self._source.weights}: the tensor {name!r} does not fit into float16; build it for CPU alone"
            )
        return self._constant(name, values.astype(np.float16), np.float16)

    def _scalar(self, value: float) -> str:
        return self._weights(f"scalar_{value}", np.array(value, np.float32))

    def _embeddings(self) -> str:
        words = self._add("Gather", self._weights(WORDS, self._tensors[WORDS]), "input_ids")
        length = self._add("Gather", self._add("Shape", "input_ids"), self._integers(1))
        table = self._weights("positions", self._tensors.positions())
        places = self._add("Slice", table, self._integers(0), length, self._integers(0))
        return self._layer_norm(self._add("Add", words, places), "embeddings.LayerNorm")

    def _attention_bias(self, mask: str) -> str:
        missing = self._add("Sub", self._float32(1.0), self._add("Unsqueeze", mask, self._integers(1, 2)))
        return self._add("Cast", self._add("Mul", missing, self._float32(MASKED)), to=self._type)

    def _layer(self, hidden: str, bias: str, prefix: str) -> str:
        shape = self._shape
        size = shape.hidden_size // shape.heads

        def heads(part: str, order: list[int], scale: float = 1.0) -> str:
            flat = self._linear(hidden, f"{prefix}attention.self.{part}", scale)
            split = self._add("Reshape", flat, self._integers(0, 0, shape.heads, size))
            return self._add("Transpose", split, perm=order)

        # Scaled before the product, which then stays far below float16's largest number.
        query = heads("query", [0, 2, 1, 3], size**-0.5)
        scores = self._add("Add", self._add("MatMul", query, heads("key", [0, 2, 3, 1])), bias)
        weights = self._add("Softmax", scores, axis=-1)
        attended = self._add("MatMul", weights, heads("value", [0, 2, 1, 3]))
        attended = self._add("Transpose", attended, perm=[0, 2, 1, 3])
        attended = self._add("Reshape", attended, self._integers(0, 0, shape.hidden_size))
        attended = self._linear(attended, prefix + "attention.output.dense")
        hidden = self._layer_norm(self._add("Add", attended, hidden), prefix + "attention.output.LayerNorm")
        expanded = self._activation(self._linear(hidden, prefix + "intermediate.dense"))
        projected = self._linear(expanded, prefix + "output.dense")
        return self._layer_norm(self._add("Add", projected, hidden), prefix + "output.LayerNorm")

    def _linear(self, x: str, name: str, scale: float = 1.0) -> str:
        weight, bias = self._tensors[name + ".weight"], self._tensors[name + ".bias"]
        if scale != 1.0:
            weight, bias = weight * np.float32(scale), bias * np.float32(scale)
        product = self._add("MatMul", x, self._weights(name + ".weight", weight.T))
        return self._add("Add", product, self._weights(name + ".bias", bias))

    def _layer_norm(self, x: str, name: str) -> str:
        weight, bias = (
            self._weights(f"{name}.{part}", self._tensors[f"{name}.{part}"]) for part in ("weight", "bias")
        )
        epsilon = self._shape.layer_norm_epsilon
        return self._add("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def _activation(self, x: str) -> str:
        """Add the gelu of BERT (erf) or of its later relatives (tanh), which are operators only since opset 20."""
        if self._shape.activation == "relu":
            return self._add("Relu", x)
        half = self._add("Mul", x, self._scalar(0.5))
        if self._shape.activation == "erf":
            curve = self._add("Erf", self._add("Mul", x, self._scalar(2**-0.5)))
        else:
            cubed = self._add("Mul", self._add("Mul", x, x), self._add("Mul", x, self._scalar(0.044715)))
            curve = self._add(
                "Tanh", self._add("Mul", self._add("Add", x, cubed), self._scalar((2 / np.pi) ** 0.5))
            )
        return self._add("Mul", half, self._add("Add", curve, self._scalar(1.0)))

    def _pooled(self, hidden: str, mask: str) -> str:
        if self._source.pooling == "cls":
            return self._add("Gather", hidden, self._constant("index_0", 0, np.int64), axis=1)
        count = self._add("ReduceSum", mask, self._integers(1), keepdims=1)
        # Shares that sum up to 1: no sum grows with the length.
        shares = self._add("Div", mask, self._add("Max", count, self._float32(1.0)))
        mean = self._add("MatMul", self._add("Unsqueeze", shares, self._integers(1)), hidden)
        return self._add("Squeeze", mean, self._integers(1))

    def _normalized(self, x: str) -> str:
        """Divide by the largest number first: TensorRT may use float16 here, in which squares overflow."""
        largest = self._add("ReduceMax", self._add("Abs", x), axes=[1], keepdims=1)
        x = self._add("Div", x, self._add("Max", largest, self._float32(1e-6)))
        length = self._add("ReduceL2", x, axes=[1], keepdims=1)
        return self._add("Div", x, self._add("Max", length, self._float32(1e-6)))

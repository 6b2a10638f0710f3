"""A BERT-family encoder as an OpenVINO graph, made from its tensors: no torch, no ONNX, half a second.

The graph is ragged. Linear layers are nine tenths of the work, and they see the tokens of all texts one after
the other, without padding; attention alone sees a padded [text, position] grid, and costs little there. So a
batch of mixed lengths takes the time of its tokens, not of its longest text.
"""

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

from triton_models.source import EncoderShape, ModelSource
from triton_models.weights import WORDS, EncoderTensors

MASKED = np.float32(-1e4)  # added to attention scores of padding; finite in bfloat16 and float16 too


def save_encoder(source: ModelSource, path: Path) -> None:
    """Write `path` (.xml) and its .bin. The inputs, for T tokens in all, B texts and a grid of L positions, are

    ids [T], positions [T]: each token, and its place in its text;
    grid [B, L]: the token at each place of each text (any token where the text has ended);
    mask [B, L]: 1 where the text has a token there, else 0;
    places [T]: each token's place in the flattened grid.

    Output: embedding [B, dimension].
    """
    ov.save_model(encoder_graph(source), path, compress_to_fp16=False)


def encoder_graph(source: ModelSource) -> ov.Model:
    return _Encoder(source).graph()


def _constant(values: object, dtype: type[np.generic] = np.float32) -> ov.Node:
    return op.constant(np.array(values, dtype))


def _input(name: str, dtype: type[np.generic], dimensions: int) -> ov.Node:
    node = op.parameter([-1] * dimensions, dtype, name=name)
    node.output(0).set_names({name})
    return node


def _rows(table: ov.Node, indices: ov.Node) -> ov.Node:
    return op.gather(table, indices, _constant(0, np.int64))


class _Encoder:
    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._shape: EncoderShape = source.shape
        self._tensors = EncoderTensors(source)

    def graph(self) -> ov.Model:
        ids, positions, places = (_input(name, np.int32, 1) for name in ("ids", "positions", "places"))
        grid, mask = _input("grid", np.int32, 2), _input("mask", np.float32, 2)
        attention_bias = op.multiply(
            op.subtract(_constant(1.0), op.unsqueeze(mask, _constant([1, 2], np.int64))), _constant(MASKED)
        )
        hidden = self._embeddings(ids, positions)
        for layer in range(self._shape.layers):
            hidden = self._layer(hidden, grid, places, attention_bias, f"encoder.layer.{layer}.")
        embedding = self._pooled(_rows(hidden, grid), mask)
        if self._source.normalize:
            embedding = op.normalize_l2(embedding, _constant([1], np.int64), 1e-12, "max")
        embedding.output(0).set_names({"embedding"})
        return ov.Model([op.result(embedding)], [ids, positions, grid, mask, places], "text_embedder")

    def _embeddings(self, ids: ov.Node, positions: ov.Node) -> ov.Node:
        words = _rows(_constant(self._tensors[WORDS]), ids)
        places = _rows(_constant(self._tensors.positions()), positions)
        return self._layer_norm(op.add(words, places), "embeddings.LayerNorm")

    def _layer(
        self, hidden: ov.Node, grid: ov.Node, places: ov.Node, attention_bias: ov.Node, prefix: str
    ) -> ov.Node:
        shape = self._shape
        split = _constant([0, 0, shape.heads, shape.hidden_size // shape.heads], np.int64)
        heads_first = _constant([0, 2, 1, 3], np.int64)
        query, key, value = (
            op.transpose(
                op.reshape(_rows(self._linear(hidden, f"{prefix}attention.self.{part}"), grid), split, True),
                heads_first,
            )
            for part in ("query", "key", "value")
        )
        attended = op.scaled_dot_product_attention(query, key, value, attention_bias, causal=False)
        flat = _constant([-1, shape.hidden_size], np.int64)
        attended = _rows(op.reshape(op.transpose(attended, heads_first), flat, False), places)
        attended = self._linear(attended, prefix + "attention.output.dense")
        hidden = self._layer_norm(op.add(attended, hidden), prefix + "attention.output.LayerNorm")
        expanded = self._activation(self._linear(hidden, prefix + "intermediate.dense"))
        projected = self._linear(expanded, prefix + "output.dense")
        return self._layer_norm(op.add(projected, hidden), prefix + "output.LayerNorm")

    def _linear(self, x: ov.Node, name: str) -> ov.Node:
        product = op.matmul(x, _constant(self._tensors[name + ".weight"]), False, True)
        return op.add(product, _constant(self._tensors[name + ".bias"][None]))

    def _layer_norm(self, x: ov.Node, name: str) -> ov.Node:
        centred = op.mvn(x, _constant([-1], np.int64), True, self._shape.layer_norm_epsilon, "inside_sqrt")
        scaled = op.multiply(centred, _constant(self._tensors[name + ".weight"][None]))
        return op.add(scaled, _constant(self._tensors[name + ".bias"][None]))

    def _activation(self, x: ov.Node) -> ov.Node:
        if self._shape.activation == "relu":
            return op.relu(x)
        return op.gelu(x, self._shape.activation)

    def _pooled(self, hidden: ov.Node, mask: ov.Node) -> ov.Node:
        tokens_axis = _constant([1], np.int64)
        if self._source.pooling == "cls":
            return op.gather(hidden, _constant(0, np.int64), _constant(1, np.int64))
        kept = op.multiply(hidden, op.unsqueeze(mask, _constant([2], np.int64)))
        total = op.reduce_sum(kept, tokens_axis, False)
        return op.divide(total, op.maximum(op.reduce_sum(mask, tokens_axis, True), _constant(1e-9)))

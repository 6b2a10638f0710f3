"""The comparison of a model's built encoders with each other, on sample texts.

The reference is the ONNX graph in float32. It and the OpenVINO graph are made from the weights independently.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from triton_models.build import build_model
from triton_models.encoder_onnx import onnx_model
from triton_models.source import ModelSource

# Below it two forms are not the same embedding space.
COSINE_MIN = 0.999

SAMPLES = (
    "",
    ".",
    "dog",
    "New York",
    "The quick brown fox jumps over the lazy dog.",
    "An animal that keeps watch over a house or a herd of sheep at night.",
    "SELECT id, title FROM articles WHERE updated_at > now() - interval '5 minutes' ORDER BY id;",
    '{"id": 7, "tags": ["red", "blue"], "price": 12.50, "nested": {"deep": null}}',
    "https://example.org/path/to/page?query=vector+search&lang=en#fragment",
    "Über die Straße fährt ein großer, blauer Bus nach Köln.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "السلام عليكم ورحمة الله وبركاته",
    "我们今天去公园散步，天气很好。",
    "नमस्ते दुनिया, यह एक परीक्षण है",
    "I ❤️ NY 🗽 and 🍕!!!",
    "The committee adjourned without a decision. " * 5,
    "A long report about rivers, dams and the people who live beside them, told year by year. " * 10,
    "colourless green ideas sleep furiously " * 200,
)

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FormComparison:
    """The cosines between the vectors of one form of a model and those of the reference, over all samples."""

    form: str
    cosine_min: float
    cosine_mean: float

    @property
    def passed(self) -> bool:
        return self.cosine_min >= COSINE_MIN


def check_model(model: ModelSource, report: Callable[[str], None] = lambda _: None) -> list[FormComparison]:
    """Build `model` for both devices in a temporary folder and run every form of it on CPU."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, gpu = Path(folder, "cpu"), Path(folder, "gpu")
        report("building")
        build_model(model, cpu, name="m")
        build_model(model, gpu, name="m", device="gpu")
        encoder = served_module(cpu / "m" / "1" / "text_encoder.py").TextEncoder(cpu / "m" / "1")
        tokens = encoder.tokenizer.tokenize(
            encoder.tokenizer.prompted([text.encode() for text in SAMPLES], "")
        )
        padded = served_module(gpu / "m_tokenizer" / "1" / "padding.py").padded

        def through_onnx(file: Path | bytes) -> Vectors:
            session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
            vectors = np.empty((len(tokens), model.shape.hidden_size), np.float32)
            for rows in _by_length(tokens):
                ids, mask = padded([tokens[row] for row in rows], model.max_tokens)
                vectors[rows] = session.run(["EMBEDDING"], {"input_ids": ids, "attention_mask": mask})[0]
            return vectors

        report("ONNX in float32")
        reference = through_onnx(onnx_model(model, "fp32").SerializeToString())
        report("ONNX in float16")
        half = through_onnx(gpu / "m_encoder" / "1" / "model.onnx")
        report(encoder.description)
        return [
            _compared(encoder.description, encoder.embed_tokens(tokens), reference),
            _compared("the GPU's ONNX file in float16, in ONNX Runtime on CPU", half, reference),
        ]


def served_module(path: Path) -> ModuleType:
    """Import a file that Triton runs as Triton does: with its folder on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _by_length(tokens: Sequence[Sequence[Any]], rows_max: int = 4) -> Iterator[list[int]]:
    """Yield rows of similar lengths: a short text that is padded to a long one costs as much as the long one."""
    rows = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    return (rows[begin : begin + rows_max] for begin in range(0, len(rows), rows_max))


def _compared(form: str, vectors: Vectors, reference: Vectors) -> FormComparison:
    products = (vectors * reference).sum(axis=1)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = products / lengths
    return FormComparison(form, float(cosines.min()), float(cosines.mean()))

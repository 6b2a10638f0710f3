"""The model for a GPU: an ensemble of a tokenizer on CPU and an ONNX encoder under TensorRT.

Nothing here needs a GPU, and nothing here was run on one: what was checked is listed in docs/models.md.
"""

import json
import shutil
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triton_models.source import ModelSource

TEMPLATE = Path(__file__).parent / "text_embedder_gpu"
SHARED_CODE = Path(__file__).parent / "text_embedder" / "1" / "text_tokenizer.py"
STEPS = ("tokenizer", "encoder")

# TensorRT compiles one engine for all shapes between the smallest and the largest, tuned for these.
TUNED_BATCH = 64
TUNED_LENGTH = 64


@dataclass(frozen=True)
class GpuOptions:
    """The options that depend on the machine with the GPU.

    Attributes:
        engine_cache: its folder for compiled engines; all but the last part of the path must exist.
        queue_size: requests that may wait for the GPU before Triton refuses more; 0 refuses none.
    """

    engine_cache: str = "/var/tmp/livevec-tensorrt"
    queue_size: int = 0


def write_ensemble(
    model: ModelSource, folder: Path, *, config: Mapping[str, object], build: str, options: GpuOptions
) -> None:
    """Write the three models into `folder`: `NAME`, `NAME_tokenizer`, `NAME_encoder`.

    Args:
        config: the values for the templates of both devices.
        build: names the build, weights included, so that engines of other builds are not used for it.
    """
    # Imported here: a model for CPU does not need onnx.
    from triton_models.encoder_onnx import save_onnx

    name, batch_max = config["name"], config["max_batch_size"]

    def shapes(batch: object, length: int) -> str:
        return ",".join(f"{tensor}:{batch}x{length}" for tensor in ("input_ids", "attention_mask"))

    values = {
        **config,
        # The escapes of JSON are also those of protocol buffers' text form.
        "engine_cache": json.dumps(options.engine_cache)[1:-1],
        "engine_prefix": f"{name}_{build}",
        "queue_policy": (
            f"\n  default_queue_policy {{ timeout_action: REJECT, max_queue_size: {options.queue_size} }}"
            if options.queue_size
            else ""
        ),
        "shapes_min": shapes(1, 1),
        "shapes_opt": shapes(TUNED_BATCH, min(TUNED_LENGTH, model.max_tokens)),
        "shapes_max": shapes(batch_max, model.max_tokens),
    }
    for part, target in (("ensemble", f"{name}"), *((step, f"{name}_{step}") for step in STEPS)):
        version = folder / target / "1"
        version.mkdir(parents=True)
        template = string.Template((TEMPLATE / part / "config.pbtxt").read_text())
        (folder / target / "config.pbtxt").write_text(template.substitute(values))
    tokenizer = folder / f"{name}_tokenizer" / "1"
    for path in (*(TEMPLATE / "tokenizer" / "1").glob("*.py"), SHARED_CODE):
        shutil.copyfile(path, tokenizer / path.name)
    shutil.copyfile(model.tokenizer, tokenizer / "tokenizer.json")
    save_onnx(model, folder / f"{name}_encoder" / "1" / "model.onnx")

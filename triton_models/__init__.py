"""The Triton model repository and the code that builds it.

What lies under `text_embedder/` and `text_embedder_gpu/` runs inside Triton's Python stub and does not import this
package; nothing here imports the daemon.
"""

from triton_models.build import Built, Device, build_model, build_repository, packaged_weights
from triton_models.gpu import GpuOptions
from triton_models.source import ModelSource, ModelSourceError, read_source

__all__ = [
    "Built",
    "Device",
    "GpuOptions",
    "ModelSource",
    "ModelSourceError",
    "build_model",
    "build_repository",
    "packaged_weights",
    "read_source",
]

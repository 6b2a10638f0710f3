"""The Triton model repository and the code that builds it.

What lies under `text_embedder/` and `text_embedder_gpu/` runs inside Triton's Python stub and does not import this
package; nothing here imports the daemon.
"""

from triton_models.build import Device as Device
from triton_models.build import build_model as build_model
from triton_models.build import build_repository as build_repository
from triton_models.build import packaged_weights as packaged_weights
from triton_models.gpu import GpuOptions as GpuOptions
from triton_models.source import ModelSource as ModelSource
from triton_models.source import ModelSourceError as ModelSourceError
from triton_models.source import read_source as read_source

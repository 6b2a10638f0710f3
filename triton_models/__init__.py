"""The Triton model repository and what builds it.

Apart from the rest: what lies under `text_embedder/` runs inside Triton's Python stub, so nothing here
imports the daemon, and nothing there imports this package.
"""

from triton_models.build import build_repository, packaged_weights
from triton_models.source import ModelSourceError

__all__ = ["ModelSourceError", "build_repository", "packaged_weights"]

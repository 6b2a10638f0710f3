"""The embedder that the configuration names."""

from daemon.embedding.embedder import Embedder
from daemon.embedding.triton import TritonEmbedder
from daemon.errors import ConfigError
from daemon.settings import EmbeddingSettings


def make_embedder(settings: EmbeddingSettings) -> Embedder:
    """Build it; nothing is connected yet."""
    if settings.provider == "triton":
        return TritonEmbedder(
            settings.url,
            settings.model,
            dimension=settings.dimension,
            timeout_s=settings.timeout_s,
            requests_max=settings.requests_max,
        )
    raise ConfigError(f"embedding.provider {settings.provider!r} is not available; use 'triton'")

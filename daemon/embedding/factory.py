"""The embedder that the configuration names."""

from daemon.embedding.embedder import Embedder
from daemon.settings import EmbeddingSettings


def make_embedder(settings: EmbeddingSettings) -> Embedder:
    """Build it; nothing is connected yet. Only the client of the provider in use is loaded.

    Raises:
        ConfigError: a setting of that provider cannot be used.
    """
    if settings.provider == "openai":
        from daemon.embedding.openai import OpenAIEmbedder

        return OpenAIEmbedder(settings)
    from daemon.embedding.triton import TritonEmbedder

    return TritonEmbedder(
        settings.url,
        settings.model,
        dimension=settings.dimension,
        timeout_s=settings.timeout_s,
        requests_max=settings.requests_max,
    )

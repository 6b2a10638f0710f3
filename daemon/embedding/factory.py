"""The embedder that the configuration names."""

from daemon.embedding.embedder import Embedder
from daemon.errors import ConfigError
from daemon.settings import EmbeddingSettings


def make_embedder(settings: EmbeddingSettings, *, any_dimension: bool = False) -> Embedder:
    """Build it; nothing is connected yet. Only the client of the provider in use is loaded.

    Args:
        any_dimension: take whatever the model has; else one that differs from the settings is refused.

    Raises:
        ConfigError: a setting of that provider cannot be used.
    """
    if settings.provider == "openai":
        if any_dimension:
            raise ConfigError(
                f"an OpenAI-compatible server does not tell how long the vectors of {settings.model!r} are; "
                "give their dimension"
            )
        from daemon.embedding.openai import OpenAIEmbedder

        return OpenAIEmbedder(settings)
    from daemon.embedding.triton import TritonEmbedder

    return TritonEmbedder(
        settings.url,
        settings.model,
        dimension=None if any_dimension else settings.dimension,
        timeout_s=settings.timeout_s,
        requests_max=settings.requests_max,
    )

"""Texts to vectors: the protocol of an embedder, one folder a provider, and how texts become requests."""

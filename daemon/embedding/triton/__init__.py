"""Embeddings from a Triton server, over gRPC."""

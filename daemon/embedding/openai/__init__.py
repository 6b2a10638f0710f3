"""Embeddings over HTTP, from OpenAI or any server that speaks its API."""

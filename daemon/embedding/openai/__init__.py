"""Embeddings over HTTP, from OpenAI or any server that speaks its API.

The `openai` client is not used: it would replace one POST and the reading of a status. What this code is about would
stay: the waits that servers tell, requests within their limits, the order and the checks of vectors, and those kept.
"""

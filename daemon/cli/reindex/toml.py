"""The lines by which daemon.toml asks for the index version that readers see."""

import json

from daemon.embedding.embedder import EmbeddingSpace
from daemon.index.registry import IndexVersion, wanted
from daemon.settings import Config, Pipeline


def lines(config: Config, pipeline: Pipeline, version: IndexVersion) -> list[str]:
    """Return the lines to change; none where it asks for it already."""
    embedding = config.embedding
    space = EmbeddingSpace(embedding.model, embedding.dimension, 0, version.fingerprint)
    differing = set(version.differences(wanted(pipeline, space, version.number)))
    shared: list[str] = []
    if differing & {"model", "dimension"}:
        shared += ["[embedding]", f"model = {_text(version.model)}", f"dimension = {version.dimension}", ""]
        others = [one.name for one in config.pipelines if one.name != pipeline.name]
        if others:
            shared.insert(1, f"# also for {', '.join(others)}: reindex them, too")
    own: list[str] = []
    if "text" in differing:
        own.append(f"text = {_text(version.text)}")
    if "metadata" in differing:
        fields = (
            f"{{ column = {_text(column)}, type = {_text(kind)}, name = {_text(name)} }}"
            for column, name, kind in version.metadata
        )
        own.append(f"metadata = [{', '.join(fields)}]")
    if differing & {"m", "ef_construction", "metric", "type"}:
        own.append(
            f"index = {{ m = {version.m}, ef_construction = {version.ef_construction}, "
            f"ef_runtime = {pipeline.index.ef_runtime}, metric = {_text(version.metric)}, "
            f"type = {_text(version.type)} }}"
        )
    if "chunking" in differing:
        tokens_max, tokens_overlap = version.chunking
        tokenizer = _text(pipeline.chunking.tokenizer)
        own.append(
            f"chunking = {{ tokens_max = {tokens_max}, tokens_overlap = {tokens_overlap}, tokenizer = {tokenizer} }}"
        )
    if own:
        shared += ["[[pipelines]]", f"name = {_text(pipeline.name)}", *own]
    return shared


def _text(value: str) -> str:
    """Return a basic string of TOML: JSON's escapes are among its own."""
    return json.dumps(value, ensure_ascii=False)

"""The lines by which daemon.toml asks for the index version that readers see."""

import json
from collections.abc import Mapping

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
        others = [other.name for other in config.pipelines if other.name != pipeline.name]
        if others:
            shared.insert(1, f"# also for {', '.join(others)}: reindex them, too")
    own: list[str] = []
    if "text" in differing:
        own.append(f"text = {_text(version.text)}")
    if "metadata" in differing:
        fields = (
            _table({"column": column, "type": kind, "name": name}) for column, name, kind in version.metadata
        )
        own.append(f"metadata = [{', '.join(fields)}]")
    if differing & {"m", "ef_construction", "metric", "type"}:
        index: dict[str, str | int] = {"m": version.m, "ef_construction": version.ef_construction}
        index |= {"ef_runtime": pipeline.index.ef_runtime, "metric": version.metric, "type": version.type}
        own.append(f"index = {_table(index)}")
    if "chunking" in differing:
        tokens_max, tokens_overlap = version.chunking
        chunking: dict[str, str | int] = {"tokens_max": tokens_max, "tokens_overlap": tokens_overlap}
        own.append(f"chunking = {_table(chunking | {'tokenizer': pipeline.chunking.tokenizer})}")
    if own:
        shared += ["[[pipelines]]", f"name = {_text(pipeline.name)}", *own]
    return shared


def _table(fields: Mapping[str, str | int]) -> str:
    """Return an inline table, which tomli-w writes over several lines."""
    return f"{{ {', '.join(f'{name} = {_text(value)}' for name, value in fields.items())} }}"


def _text(value: str | int) -> str:
    """Return a basic string of TOML, whose escapes include those of JSON, or a number."""
    return json.dumps(value, ensure_ascii=False)

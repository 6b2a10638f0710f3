"""The name of a worker's build: what decides is in it, and nothing else."""

import ast
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

import workflows.deployment
from daemon.settings import WorkerSettings
from workflows.deployment import DECIDING, build_id, deployment

FOLDER = Path(workflows.deployment.__file__).parent


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workflows' folder, from which the build is named."""
    folder = tmp_path / "workflows"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(workflows.deployment, "__file__", str(folder / "deployment.py"))
    return folder


def test_a_build_is_named_after_the_version_of_the_package() -> None:
    assert build_id(WorkerSettings()).startswith(f"{version('livevec')}+")


@pytest.mark.parametrize("name", DECIDING)
def test_a_change_of_what_decides_is_another_build(copied: Path, name: str) -> None:
    before = build_id(WorkerSettings())
    with (copied / name).open("a") as file:
        file.write("# changed\n")
    assert build_id(WorkerSettings()) != before


def test_a_change_of_an_activity_is_the_same_build(copied: Path) -> None:
    before = build_id(WorkerSettings())
    with (copied / "worker.py").open("a") as file:
        file.write("# changed\n")
    assert build_id(WorkerSettings()) == before


def test_a_build_may_be_named_by_its_owner_and_needs_no_deployment() -> None:
    assert build_id(WorkerSettings(build_id="mine")) == "mine"
    assert deployment(WorkerSettings(deployment="")) is None


ACTING = {"activities", "gate", "search_attributes"}
"""Modules whose code runs outside of a workflow's decisions, though a workflow names what is in them."""


def imported(file: Path, folder: Path) -> set[Path]:
    """The files of `workflows` that this one imports from."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    paths = {folder.parent / f"{module.replace('.', '/')}.py" for module in modules}
    return {path for path in paths if path.is_relative_to(folder) and path.exists()}


def test_the_build_is_named_after_all_files_that_workflows_decide_by() -> None:
    folder = Path(deployment.__code__.co_filename).parent
    deciding: set[Path] = set()
    waiting = set(folder.glob("*/workflow.py"))
    assert len(waiting) == 4
    while waiting:
        file = waiting.pop()
        deciding.add(file)
        waiting |= {one for one in imported(file, folder) if one.stem not in ACTING} - deciding
    assert sorted(DECIDING) == sorted(str(file.relative_to(folder)) for file in deciding)

"""The name of a worker's build: what decides is in it, and nothing else."""

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

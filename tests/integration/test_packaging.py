"""What a built wheel holds: every file that the installed package reads beside its code."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("connectors", "daemon", "deploy", "triton_models", "workflows")
LEFT_OUT = {"__pycache__"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from the working tree, with the build backend that is installed: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # setuptools writes its own folders beside pyproject.toml.
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE", "daemon.toml"):
        (source / name).symlink_to(ROOT / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


def test_the_reference_of_the_configuration_is_packaged_as_it_stands_in_the_repository(
    wheel: zipfile.ZipFile,
) -> None:
    assert wheel.read("daemon/reference.toml") == (ROOT / "daemon.toml").read_bytes()


def test_every_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and not LEFT_OUT & set(path.parts)
    }
    assert files <= set(wheel.namelist()), sorted(files - set(wheel.namelist()))

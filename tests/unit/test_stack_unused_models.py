"""Built models in the cache: the current one stays, and what a stack runs on; the others go."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.local.artifacts import KEPT_AFTER_USE_S, drop_unused_models


def built(cache: Path, name: str, *, age_s: float = 2 * KEPT_AFTER_USE_S) -> Path:
    folder = cache / name
    (folder / "text_embedder").mkdir(parents=True)
    used_s = time.time() - age_s
    os.utime(folder, (used_s, used_s))
    return folder


def test_the_current_model_and_what_is_no_model_stay(tmp_path: Path) -> None:
    current = built(tmp_path, "models-current")
    old = built(tmp_path, "models-old")
    killed_build = built(tmp_path, "models-older.partial-123")
    other = built(tmp_path, "kafka-old")
    assert set(drop_unused_models(current)) == {old, killed_build}
    assert {path.name for path in tmp_path.iterdir()} == {current.name, other.name}


def test_a_model_that_was_used_lately_stays(tmp_path: Path) -> None:
    """A stack that was given it a moment ago does not run yet."""
    first, second = built(tmp_path, "models-first"), built(tmp_path, "models-second")
    assert drop_unused_models(second) == [first]
    assert drop_unused_models(built(tmp_path, "models-third")) == []
    assert second.is_dir()


@pytest.mark.parametrize(
    "argument", ["--model-repository={}", '{{"home": "/h\\u00f6me", "artifacts": {{"models": "{}"}}}}']
)
def test_a_model_that_a_process_names_stays(argument: str, tmp_path: Path) -> None:
    """Triton, or the supervisor that will start it again."""
    current, old = built(tmp_path, "models-current"), built(tmp_path, f"models-{os.getpid()}")
    sleeper = [sys.executable, "-c", "print(flush=True); input()", argument.format(old)]
    with subprocess.Popen(sleeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert drop_unused_models(current) == []
        process.communicate(b"\n")
    assert drop_unused_models(current) == [old]


def test_locks_of_builds_that_are_over_are_dropped(tmp_path: Path) -> None:
    current = built(tmp_path, "models-current")
    running = built(tmp_path, "models-next.partial-7", age_s=0)
    for name in ("models-next.partial-7", "models-current.partial-3"):
        (tmp_path / f".{name}-build.lock").touch()
    drop_unused_models(current)
    assert {path.name for path in tmp_path.iterdir()} == {
        current.name,
        running.name,
        ".models-next.partial-7-build.lock",
    }


def test_what_a_killed_process_left_half_dropped_is_dropped(tmp_path: Path) -> None:
    built(tmp_path, ".unused-models-old")
    drop_unused_models(built(tmp_path, "models-current"))
    assert [path.name for path in tmp_path.iterdir()] == ["models-current"]

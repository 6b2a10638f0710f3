"""The cache that homes share: complete or absent, whoever builds and whoever is killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daemon.errors import StackError
from deploy.local import maven, ports
from deploy.local.artifacts import OnDetail, provide
from deploy.local.home import StepProgress, silent

SLOW_BUILDER = """
import sys, time
from pathlib import Path
from deploy.local.artifacts import provide
from deploy.local.home import silent
def build(folder, report):
    (folder / "half").touch()
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "whole").touch()
provide(Path(sys.argv[1]), silent, "test", build)
print("provided", flush=True)
"""


def builder(target: Path, seconds: float) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", SLOW_BUILDER, str(target), str(seconds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_no_target_and_the_next_one_starts_anew(tmp_path: Path) -> None:
    target = tmp_path / "jars"
    with builder(target, 60) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "building\n"
        killed.kill()
    assert not target.exists()

    def build(folder: Path, report: OnDetail) -> None:
        assert list(folder.iterdir()) == []
        (folder / "whole").touch()

    provide(target, silent, "test", build)
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.glob("jars*")] == ["jars"]


def test_two_processes_build_once(tmp_path: Path) -> None:
    target = tmp_path / "jars"
    with builder(target, 1.0) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "building\n"
        news: list[StepProgress] = []
        built: list[Path] = []
        started_s = time.monotonic()
        provide(target, news.append, "test", lambda folder, report: built.append(folder))
        assert time.monotonic() - started_s > 0.5
        assert first.stdout.readline() == "provided\n"
    assert built == []
    assert any("waiting for another livevec" in entry.detail for entry in news)
    assert (target / "whole").exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path, report: OnDetail) -> None:
        (folder / "half").touch()
        raise StackError("no network")

    with pytest.raises(StackError, match="no network"):
        provide(tmp_path / "jars", silent, "test", build)
    assert list(tmp_path.glob("jars*")) == []


def test_a_file_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock.json"
    good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    lock.write_text(json.dumps({"jars": {"a.jar": good}}))
    monkeypatch.setattr(maven, "LOCK", lock)
    jars = tmp_path / "jars"
    jars.mkdir()
    with pytest.raises(StackError, match=r"a\.jar is missing"):
        maven.verify(jars, "jars")
    (jars / "a.jar").write_text("abc")
    maven.verify(jars, "jars")
    (jars / "a.jar").write_text("abd")
    with pytest.raises(StackError, match=r"a\.jar is not the file that livevec was tested with"):
        maven.verify(jars, "jars")
    (jars / "a.jar").write_text("abc")
    (jars / "b.jar").write_text("more")
    with pytest.raises(StackError, match=r"b\.jar was not expected"):
        maven.verify(jars, "jars")


def test_missing_maven_is_named_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="Debian package maven"):
        maven.check()


def test_mavens_own_words_are_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mvn = tmp_path / "mvn"
    mvn.write_text("#!/bin/sh\necho '[ERROR] could not transfer artifact'\nexit 1\n")
    mvn.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(StackError, match=r"(?s)check the network.*could not transfer artifact"):
        maven.fetch("group:artifact:1", tmp_path, lambda name: None)


def test_ports_are_remembered_and_distinct() -> None:
    first = ports.choose({}, {})
    assert first.keys() == set(ports.NAMES)
    assert len(set(first.values())) == len(first)
    assert ports.choose({}, first) == first


def test_a_fixed_port_beats_the_remembered_one_and_is_given_once() -> None:
    first = ports.choose({}, {})
    fixed = ports.choose({"redis": first["kafka"]}, first)
    assert fixed["redis"] == first["kafka"]
    assert fixed["kafka"] != first["kafka"]
    with pytest.raises(StackError, match="given twice"):
        ports.choose({"redis": 20_001, "kafka": 20_001}, {})

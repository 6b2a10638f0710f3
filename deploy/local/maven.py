"""Files from Maven's repository: fetched by the `mvn` command, and checked against the hashes in this package."""

import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from daemon.errors import StackError

PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:2.8"
LOCK = Path(__file__).parent / "templates" / "artifacts.lock.json"
_DOWNLOADED = re.compile(r"Downloaded from \S+ \S+/([^/\s]+\.(?:jar|tar\.gz)) ")

OnFile = Callable[[str], None]


def check() -> None:
    """Raise StackError where Maven is missing, naming the package to install."""
    if shutil.which("mvn") is None:
        raise StackError("mvn is missing: install the Debian package maven")


def locked(group: str) -> Mapping[str, str]:
    """Return the file names of a group with their SHA-256."""
    content: dict[str, dict[str, str]] = json.loads(LOCK.read_text("utf-8"))
    return content[group]


def fetch_dependencies(pom: Path, folder: Path, on_file: OnFile) -> None:
    """Copy all runtime dependencies of a pom into `folder`."""
    arguments = ["-f", str(pom), f"{PLUGIN}:copy-dependencies", "-DincludeScope=runtime"]
    _run([*arguments, f"-DoutputDirectory={folder}"], folder, on_file)


def fetch(coordinates: str, folder: Path, on_file: OnFile) -> None:
    """Copy one artifact (`group:artifact:version[:packaging[:classifier]]`) into `folder`."""
    _run([f"{PLUGIN}:copy", f"-Dartifact={coordinates}", f"-DoutputDirectory={folder}"], folder, on_file)


def verify(folder: Path, group: str) -> None:
    """Raise StackError where `folder` does not hold exactly the locked files of `group`."""
    hashes = locked(group)
    files = {path.name: path for path in folder.iterdir()}
    for name in sorted(hashes.keys() | files.keys()):
        if name not in files or name not in hashes:
            what = "is missing" if name not in files else "was not expected"
            raise StackError(
                f"{name} {what} after the download of {group}; delete {folder.parent} and try again"
            )
        with files[name].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != hashes[name]:
            raise StackError(
                f"{name} is not the file that livevec was tested with (SHA-256 {digest}): delete it from Maven's "
                "local repository and try again; if it comes back, a mirror serves something else"
            )


def _environment() -> dict[str, str]:
    """Return the environment with a home folder, which Java takes from the password file alone."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        options = f"{os.environ.get('MAVEN_OPTS', '')} -Duser.home={Path.home()}"
        return {**os.environ, "MAVEN_OPTS": options.strip()}
    return dict(os.environ)


def _run(arguments: list[str], folder: Path, on_file: OnFile) -> None:
    command = ["mvn", "--batch-mode", *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Maven also reads a .mvn folder of the current folder's parents.
        cwd=folder,
        env=_environment(),
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines = [*lines[-40:], line.rstrip()]
            if match := _DOWNLOADED.search(line):
                on_file(match[1])
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
    if process.returncode:
        problem = "\n".join(line for line in lines if "[ERROR]" in line) or "\n".join(lines[-5:])
        raise StackError(
            f"Maven failed; check the network, then try again. `{' '.join(command)}` said:\n{problem}"
        )

"""The Java virtual machine: found, checked, and its flags for a small machine."""

import os
import re
import shutil
import subprocess

from daemon.errors import StackError
from deploy.local.servers.base import TEMPLATES, Artifacts

VERSION_MIN = 17
PACKAGE = "openjdk-17-jre-headless"


def java() -> str:
    """Return the command of $JAVA_HOME, else that of the path."""
    home = os.environ.get("JAVA_HOME")
    command = shutil.which("java", path=f"{home}/bin") if home else None
    command = command or shutil.which("java")
    if command is None:
        raise StackError(f"java is missing: install the Debian package {PACKAGE}")
    return command


def check() -> None:
    """Raise StackError where Java is missing or too old, naming the package to install."""
    command = java()
    result = subprocess.run([command, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?(\d+)', result.stderr + result.stdout)
    if result.returncode or version is None:
        raise StackError(f"`{command} -version` fails: install the Debian package {PACKAGE}")
    if int(version[1]) < VERSION_MIN:
        raise StackError(
            f"{command} is Java {version[1]}; Kafka needs {VERSION_MIN} or newer: install the Debian package "
            f"{PACKAGE}, or set JAVA_HOME"
        )


def command_line(artifacts: Artifacts, main: str, *arguments: str, heap_mb_max: int) -> tuple[str, ...]:
    return (
        java(),
        "-Xms128m",
        f"-Xmx{heap_mb_max}m",
        "-XX:+UseSerialGC",
        # The optimising compiler would take the second core for minutes; C1 alone starts in half the time.
        "-XX:TieredStopAtLevel=1",
        "-Xshare:auto",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.net.preferIPv4Stack=true",
        f"-Dlog4j2.configurationFile={(TEMPLATES / 'log4j2.yaml').as_uri()}",
        "-cp",
        f"{artifacts.kafka_jars}/*",
        main,
        *arguments,
    )

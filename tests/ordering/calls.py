"""Calls of functions.lua for which the writer has no command of its own, and the library's text."""

from importlib.resources import files

from daemon.core.version import Version
from daemon.index.layout import Layout
from daemon.index.writer import Command, Delete, Put, Touch


def library_source() -> str:
    return (files("daemon.index") / "functions.lua").read_text("utf-8")


def raise_floor(layout: Layout, identifier: str, version: Version) -> Command:
    """Raises the floor of the document's bucket."""
    return ["FCALL", "livevec_raise_floor", 1, layout.keys(identifier)[1], version.encode()]


def sweep(layout: Layout, identifier: str, version: Version) -> Command:
    return ["FCALL", "livevec_sweep", 3, *layout.keys(identifier), version.encode()]


def advance(positions_key: str, *changes: tuple[str, str, str]) -> Command:
    """Changes are (field, expected value, new value)."""
    return ["FCALL", "livevec_advance", 1, positions_key, *(part for change in changes for part in change)]


def with_version(command: Command, text: str) -> Command:
    """The same call with another text where the version stands, after the keys."""
    keys = command[2]
    assert isinstance(keys, int)
    return [*command[: 3 + keys], text, *command[4 + keys :]]


__all__ = [
    "Command",
    "Delete",
    "Put",
    "Touch",
    "advance",
    "library_source",
    "raise_floor",
    "sweep",
    "with_version",
]

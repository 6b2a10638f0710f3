"""The calls of functions.lua that a test makes: the writer's own, and those it makes many of at once."""

from dataclasses import dataclass
from importlib.resources import files

from daemon.core.version import Version
from daemon.index.connection import Command
from daemon.index.layout import Layout
from daemon.index.writer import Delete, Put, Touch


@dataclass(frozen=True, slots=True)
class RaiseFloor:
    """Raise the floor of the document's bucket."""

    id: str
    version: Version

    def command(self, layout: Layout) -> Command:
        return ["FCALL", "livevec_raise_floor", 1, layout.keys(self.id)[1], self.version.encode()]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Remove the document if the version is newer."""

    id: str
    version: Version

    def command(self, layout: Layout) -> Command:
        return ["FCALL", "livevec_sweep", 3, *layout.keys(self.id), self.version.encode()]


Call = Put | Touch | Delete | RaiseFloor | Sweep


def advance(positions_key: str, *changes: tuple[str, str, str]) -> Command:
    """Changes are (field, expected value, new value)."""
    return ["FCALL", "livevec_advance", 1, positions_key, *(part for change in changes for part in change)]


def with_version(command: Command, text: str) -> Command:
    """The same call with another text where the version stands, after the keys."""
    keys = command[2]
    assert isinstance(keys, int)
    return [*command[: 3 + keys], text, *command[4 + keys :]]


def library_source() -> str:
    return (files("daemon.index") / "functions.lua").read_text("utf-8")

"""What a history needs of an index."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from daemon.core.version import Version
from daemon.index.writer import Result

# Life of a delete marker on a history's own clock.
MARKER_TTL_S = 60


@dataclass(frozen=True)
class Stored:
    """What is stored for a key; the text of a delete marker is None."""

    text: str | None


class Index(Protocol):
    """One index version with a history's few documents; keys and time are the history's own numbers."""

    def put(self, key: int, version: Version, text: str) -> Result: ...

    def touch(self, key: int, version: Version, planned_text: str) -> Result: ...

    def delete(self, key: int, version: Version, expires_s: int) -> Result: ...

    def raise_floor(self, key: int, version: Version) -> None:
        """Raises the floor of the key's bucket."""

    def sweep(self, key: int, version: Version) -> None: ...

    def stored(self, key: int) -> Stored | None: ...

    def expire(self, now_s: int) -> None:
        """Delete markers whose life has ended are gone."""

    def checkpoint(self) -> Callable[[], None]:
        """Keeps the state; calling what it returns goes back to it."""

    def reader_view(self) -> dict[int, str | None]:
        """The text of each key as a reader finds it, None where there is none."""

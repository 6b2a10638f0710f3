"""How the stack tells what it is doing."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step's news. `done` of `total` where they are known; `seconds` since the step began."""

    step: str
    detail: str
    done: int | None = None
    total: int | None = None
    seconds: float | None = None
    finished: bool = False


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """For callers that show nothing."""

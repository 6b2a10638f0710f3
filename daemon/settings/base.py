"""What all settings have in common."""

import difflib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LOCAL = "local"
"""In place of an address: that of the embedded stack."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Column = Annotated[str, Field(min_length=1, max_length=63)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""

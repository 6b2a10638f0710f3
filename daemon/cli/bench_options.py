"""Options that several measurements have."""

from pathlib import Path
from typing import Annotated

import typer

TOKENS = 14
Tokens = Annotated[int, typer.Option(min=3, max=500, help="Tokens of a text, about.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Also draw it there: SVG, or PNG where the name ends in .png.")
]

"""`livevec bench`: measurements on a running stack."""

import typer

app = typer.Typer(help="Measure on a running stack.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure on a running stack."""

"""`livevec demo`: everything, live, with one command."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Annotated

import typer

from daemon.cli import console
from daemon.cli.context import Json

ROWS = 10_000
RATE = 20.0
WATCH_S = 15.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(Exception):
    """A signal asked the demonstration to end."""


def demo(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="End after the search instead of staying up.")] = False,
    rows: Annotated[int, typer.Option(min=100, max=100_000, help="Rows of the table.")] = ROWS,
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Edits a second.")] = RATE,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of edits before the search.")] = WATCH_S,
    as_json: Json = False,
) -> None:
    """Start the embedded stack, mirror a table of real texts, edit it, and show how fresh the index is.

    Stays up until Ctrl-C, which stops every process that it started.
    """
    shown = False
    with _stopped_by_signals(), ExitStack() as started:
        try:
            # Here, because it takes a second in which a signal may come.
            from daemon.cli.demo.run import Demonstration

            running = Demonstration(context, started, rows, rate)
            result = running.play(seconds)
            shown = True
            if as_json:
                console.print_json(result)
            if not once:
                running.stay()
        except _Stopped:
            console.err.print("stopping")
            if not shown:
                raise typer.Exit(130) from None
        finally:
            # A second Ctrl-C must not leave a process behind.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise _Stopped in the block on SIGINT, SIGTERM or SIGHUP (the terminal was closed)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

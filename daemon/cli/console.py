"""What commands print: results on standard output, progress and errors on standard error."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any, Self

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

OK = "[green]✓[/green]"
BAD = "[red]✗[/red]"

_PIPED_WIDTH = 160


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


err = _console(stderr=True)
out = _console(stderr=False)


def print_json(value: Any) -> None:
    """Print one JSON object on standard output; a dataclass is printed by its fields."""
    content = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(*columns: str) -> Table:
    """Return an empty table with these headings."""
    empty = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        empty.add_column(column, overflow="fold")
    return empty


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, each in its own row; what is None or empty is left out."""
    rows = table("", "")
    rows.show_header = False
    for name, value in fields.items():
        if value not in (None, ""):
            rows.add_row(name, plain(value))
    out.print(rows)


def titled(title: str, below: Table) -> Group:
    """Put a title above a table; the table's own would be folded to the table's width."""
    return Group(Text(title, style="italic"), below)


def plain(value: object) -> Text:
    """Return a cell whose brackets are not read as markup."""
    return Text(str(value))


def shortened(text: str, chars_max: int) -> str:
    """Return the text, or its beginning and an ellipsis where it is longer."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


class Steps:
    """Shows steps with their seconds: live on a terminal, else in a line when a step begins and when it ends.

    `seconds` holds how long each finished step took, in the order in which they finished.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._live = Progress(
            SpinnerColumn(finished_text=OK),
            TextColumn("{task.description}", markup=False),
            _Seconds(),
            _Bar(bar_width=24),
            _Detail(),
            console=err,
            disable=not err.is_terminal,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def news(
        self,
        step: str,
        detail: str = "",
        done: int | None = None,
        total: int | None = None,
        *,
        seconds: float | None = None,
        end: bool = False,
        failed: bool = False,
    ) -> None:
        """Show how far a step is.

        Args:
            seconds: the time since it began, where the caller knows it better than this display.
            end: the step is done.
            failed: the step is done because it failed; `detail` says why.
        """
        if step not in self._tasks:
            self._began[step] = time.monotonic()
            self._tasks[step] = self._live.add_task(step, total=None, detail="", counted=False)
            if not end:
                self._line(f"  {step} {detail}")
        if seconds is None:
            seconds = time.monotonic() - self._began[step]
        task = self._tasks[step]
        self._live.update(task, detail=detail)
        if total is not None:
            self._live.update(task, total=total, completed=done or 0, counted=True)
        if failed:
            self._live.remove_task(task)
            err.print(f"✗ {step} {detail}", markup=False)
            del self._tasks[step], self._began[step]
        elif end:
            self.seconds[step] = round(seconds, 3)
            finished = self._live.tasks[task].total or 1
            self._live.update(task, total=finished, completed=finished, took_s=seconds)
            self._line(f"✓ {step} {seconds:.1f} s {detail}")
            del self._tasks[step], self._began[step]

    @contextmanager
    def step(self, step: str, detail: str = "") -> Iterator[None]:
        """A step that lasts as long as the block."""
        self.news(step, detail)
        yield
        self.news(step, detail, end=True)

    def _line(self, text: str) -> None:
        if self._live.disable:
            err.print(text.rstrip(), markup=False)


class _Detail(ProgressColumn):
    """Shows the count, where there is one, then what is being done."""

    def render(self, task: Task) -> Text:
        count = f"{task.completed:,.0f} of {task.total:,.0f} " if task.fields["counted"] else ""
        return Text(count + str(task.fields["detail"]), style="dim", overflow="ellipsis", no_wrap=True)


class _Bar(BarColumn):
    def render(self, task: Task) -> Any:
        return super().render(task) if task.fields["counted"] and not task.finished else Text("")


class _Seconds(ProgressColumn):
    def render(self, task: Task) -> Text:
        elapsed = task.fields.get("took_s", task.elapsed)
        return Text(f"{elapsed or 0:6.1f} s", style="cyan")

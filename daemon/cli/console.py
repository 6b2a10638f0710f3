"""What commands print: results on standard output, progress and errors on standard error."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.table import Table
from rich.text import Text

OK = "[green]✓[/green]"
BAD = "[red]✗[/red]"

_PIPED_WIDTH = 160


def _console(*, stderr: bool) -> Console:
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = _PIPED_WIDTH
    return made


err = _console(stderr=True)
out = _console(stderr=False)


def print_json(value: Any) -> None:
    """One JSON object on standard output; a dataclass is printed by its fields."""
    content = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def titled(title: str, below: Table) -> Group:
    """A table's own title would be folded to the table's width."""
    return Group(Text(title, style="italic"), below)


def plain(value: object) -> Text:
    """A cell whose brackets are no markup."""
    return Text(str(value))


class Steps:
    """Steps with their seconds: a live display on a terminal, else a line when a step begins and ends.

    Attributes:
        seconds: of each finished step, in the order they finished.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._live = Progress(
            SpinnerColumn(finished_text=OK),
            _Description(),
            _Seconds(),
            _Bar(bar_width=24),
            _Detail(),
            console=err,
            disable=not err.is_terminal,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Show where a step is.

        Args:
            seconds: since it began, where the caller knows better than this display.
            end: it is over.
            failed: it is over because it failed; `detail` says why.
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


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.description)


class _Detail(ProgressColumn):
    """The count, where there is one, then what is being done."""

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

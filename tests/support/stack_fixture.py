"""A full embedded stack for a test session."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.local.stack import Stack


@contextmanager
def throwaway_home() -> Iterator[Path]:
    """A folder for a stack, removed with whatever runs there.

    pytest's own temporary folders are closed to other users, and PostgreSQL's must be able to pass.
    """
    path = Path(tempfile.mkdtemp(prefix="livevec-test-"))
    path.chmod(0o755)
    try:
        yield path / "home"
    finally:
        Stack(path / "home").down()
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running_stack(home: Path, servers: Sequence[str] | None = None) -> Iterator[Stack]:
    """Up on entry, surely down on exit, even where this process is killed."""
    stack = Stack(home, servers=servers)
    stack.up(detach=False)
    try:
        yield stack
    finally:
        stack.down()

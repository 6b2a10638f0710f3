"""Processes as the kernel shows them: who a pid really is, whose children, and how to end them."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# In the environment of every process that belongs to a home.
SERVER_MARK = "LIVEVEC_SERVER_OF"
SUPERVISOR_MARK = "LIVEVEC_SUPERVISOR_OF"


@dataclass(frozen=True)
class ProcessId:
    """One process for good: a pid is given to another process one day, but never with the same start time."""

    pid: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        entry = _stat(self.pid)
        return entry is not None and entry.start_ticks == self.start_ticks and entry.state not in "ZX"

    def send(self, sig: int) -> bool:
        """Send a signal; return False where the process is gone already."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, sig)
        except ProcessLookupError:
            return False
        return True


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    session: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        content = Path(f"/proc/{pid}/stat").read_text("latin-1")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name may hold spaces and brackets: what follows the last bracket is fixed.
    fields = content[content.rindex(")") + 2 :].split()
    return _Stat(state=fields[0], parent=int(fields[1]), session=int(fields[3]), start_ticks=int(fields[19]))


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def identify(pid: int) -> ProcessId | None:
    """Return who a pid is, or None where there is no such process, or only its unread exit status."""
    entry = _stat(pid)
    return None if entry is None or entry.state in "ZX" else ProcessId(pid, entry.start_ticks)


def marked(mark: str, home: Path) -> list[ProcessId]:
    """Return the other processes that carry `mark` for the stack in `home`, whoever their parent is now."""
    entry = f"{mark}={home}".encode()
    processes = []
    for pid in _pids():
        identity = identify(pid) if pid != os.getpid() else None
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if identity is not None and entry in environ.split(b"\0"):
            processes.append(identity)
    return processes


def orphans(known: Iterable[int]) -> list[int]:
    """Return the pids of this process's adopted children: those of servers that died.

    A server and all it starts run in sessions of their own; a child in our session is a tool that we wait for.
    """
    ours, session = os.getpid(), os.getsid(0)
    known = set(known)
    pids = []
    for pid in _pids():
        entry = _stat(pid)
        if entry is not None and entry.parent == ours and entry.session != session and pid not in known:
            pids.append(pid)
    return pids


def end(processes: Iterable[ProcessId], *, sig: int = signal.SIGKILL, timeout_s: float = 10.0) -> None:
    """Send `sig`, wait, and kill what is left after `timeout_s`."""
    left = [process for process in processes if process.send(sig)]
    deadline = time.monotonic() + timeout_s
    while left := [process for process in left if process.alive]:
        if time.monotonic() > deadline:
            for process in left:
                process.send(signal.SIGKILL)
            deadline = time.monotonic() + timeout_s
        time.sleep(0.02)


def tail(log: Path, *, offset: int = 0, lines: int = 15) -> str:
    """Return the last lines that were written after `offset` bytes."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset, size - 16_384))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])

"""Processes as the kernel shows them: who a pid really is, whose children, and how to end them."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

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
        return identify(self.pid) == self

    def send(self, sig: int) -> bool:
        """Send a signal; return False where the process is gone already."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)
                return True
        return False


def identify(pid: int) -> ProcessId | None:
    """Return who a pid is, or None where there is no such process, or only its unread exit status."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        # Since boot: the time of day at which it started changes with the clock.
        return ProcessId(pid, round((process.create_time() - psutil.boot_time()) * 100))
    except psutil.NoSuchProcess:
        return None


def marked(mark: str, home: Path) -> list[ProcessId]:
    """Return the other processes that carry `mark` for the stack in `home`, whoever their parent is now."""
    processes = []
    for process in psutil.process_iter():
        identity = identify(process.pid) if process.pid != os.getpid() else None
        with suppress(psutil.Error):
            if identity is not None and process.environ().get(mark) == str(home):
                processes.append(identity)
    return processes


def orphans(known: Iterable[int]) -> list[int]:
    """Return the pids of this process's adopted children: those of servers that died.

    A server and all it starts run in sessions of their own; a child in our session is a tool that we wait for.
    """
    known = set(known)
    pids = []
    for child in psutil.Process().children():
        with suppress(ProcessLookupError):
            if child.pid not in known and os.getsid(child.pid) != os.getsid(0):
                pids.append(child.pid)
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

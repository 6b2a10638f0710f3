"""What another process uses: the CPU time of all its threads together."""

import os
from pathlib import Path

from daemon.errors import LivevecError

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_AFTER_NAME_UTIME = 11
"""The index in /proc/PID/stat, counted from the field after the name: proc(5) numbers utime 14 and the state 3."""


def cpu_s(pid: int) -> float:
    """Return the seconds in user and system mode, in steps of a clock tick (10 ms).

    Raises:
        LivevecError: there is no such process.
    """
    return parse_stat(read_proc(pid, "stat")) / _TICKS_PER_S


def parse_stat(content: str) -> int:
    """Return utime + stime, in clock ticks. The name before them may hold spaces and brackets."""
    fields = content[content.rindex(")") + 1 :].split()
    return int(fields[_AFTER_NAME_UTIME]) + int(fields[_AFTER_NAME_UTIME + 1])


def read_proc(pid: int, name: str) -> str:
    """Return what a file of /proc/PID holds.

    Raises:
        LivevecError: there is no such process.
    """
    try:
        return Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")
    except OSError as error:
        raise LivevecError(
            f"process {pid} has ended, or this system has no /proc ({error}); measure on Linux"
        ) from error

"""What another process uses: CPU time of all its threads together, and memory."""

import os
from pathlib import Path

from daemon.errors import LivevecError

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_AFTER_NAME_UTIME = 11
"""Of /proc/PID/stat, counted from the field after the name: proc(5) numbers utime 14 and the state 3."""


def cpu_s(pid: int) -> float:
    """Seconds in user and system mode, in steps of a clock tick (10 ms).

    Raises:
        LivevecError: there is no such process.
    """
    return parse_stat(_read(pid, "stat")) / _TICKS_PER_S


def rss_mb(pid: int) -> float:
    """Resident set size, in millions of bytes.

    Raises:
        LivevecError: there is no such process.
    """
    return parse_statm(_read(pid, "statm"))


def parse_stat(content: str) -> int:
    """utime + stime, in clock ticks. The name before them may hold spaces and brackets."""
    fields = content[content.rindex(")") + 1 :].split()
    return int(fields[_AFTER_NAME_UTIME]) + int(fields[_AFTER_NAME_UTIME + 1])


def parse_statm(content: str) -> float:
    """Its second field, in pages; in millions of bytes."""
    return round(int(content.split()[1]) * _PAGE_BYTES / 1e6, 1)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")
    except OSError as error:
        raise LivevecError(
            f"process {pid} has ended, or this system has no /proc ({error}); measure on Linux"
        ) from error

"""What another process uses."""

import psutil

from daemon.errors import LivevecError


def cpu_s(pid: int) -> float:
    """Return the seconds of all its threads in user and system mode, in steps of a clock tick (10 ms).

    Raises:
        LivevecError: there is no such process.
    """
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess as error:
        raise LivevecError(f"process {pid} has ended") from error
    return times.user + times.system

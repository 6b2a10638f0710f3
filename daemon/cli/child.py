"""Child processes of a command, `livevec run` among them: they end with this process, however it ends."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from daemon.cli.daemon_http import DaemonHttp
from daemon.errors import LivevecError

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 2000
_prctl = ctypes.CDLL(None).prctl


class ChildProcess:
    """A process in a session of its own, so that Ctrl-C reaches only the command, which then stops it in order.

    Its output is appended to `log`; messages call it `name`.
    """

    def __init__(self, command: list[str], log: Path, name: str) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._name = name
        parent = os.getpid()

        def end_with_parent() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)

        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raise LivevecError with the end of its log where the process has ended."""
        status = self.process.poll()
        if status is not None:
            text = self.log.read_text("utf-8", "replace")[-_LOG_TAIL_BYTES:].strip()
            raise LivevecError(f"{self._name} ended with status {status}; {self.log} ends with:\n{text}")

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = _READY_TIMEOUT_S
    ) -> None:
        """Poll until `condition` holds; raise LivevecError where the process ended, or the time ran out."""
        ends_at = time.monotonic() + timeout_s
        while not condition():
            self.check()
            if time.monotonic() > ends_at:
                raise LivevecError(f"{self._name} {what} for {timeout_s:g} s; see {self.log}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the process in order; kill it if that takes too long."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class DaemonChild(ChildProcess):
    """`livevec run` as a child process, whose telemetry is at `address`, `host:port`."""

    def __init__(self, config: Path, log: Path, address: str) -> None:
        command = [sys.executable, "-m", "daemon.cli", "--config", str(config), "run"]
        super().__init__(command, log, "the daemon")
        self.http = DaemonHttp(address)

    def wait_ready(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait until it has its partitions and every part answers."""
        self.wait_until(lambda: self.http.ready() is True, "was not ready", timeout_s)

    def stop(self) -> None:
        super().stop()
        self.http.close()

"""The watch over one server of the stack: it starts, probes, restarts and stops its process."""

import asyncio
import signal
import time
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from daemon.errors import StackError
from deploy.local.home import OnProgress, ServerState, StepProgress
from deploy.local.process import ProcessId, identify, tail
from deploy.local.servers.base import Command, NotReady, Server, launch_line

PROBE_PERIOD_S = 0.1
HEAL_PERIOD_S = 5.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# So many deaths within the window, and the server is given up.
DEATHS_MAX = 6
DEATHS_WINDOW_S = 60.0
# However much a server logs, it does not start for longer than this.
START_S_MAX = 1800.0


@dataclass
class StartLimit:
    """Decides when a server has taken too long to start.

    The limit counts from the last sign of progress, which is that the log grows: on a loaded machine a server may
    need minutes, and one that hangs says nothing.
    """

    started_s: float
    quiet_s_max: float
    log_bytes: int = 0

    def __post_init__(self) -> None:
        self._progress_s = self.started_s

    def exceeded(self, now_s: float, log_bytes: int) -> str | None:
        """Return what took too long, or None while the server may go on starting."""
        if log_bytes != self.log_bytes:
            self.log_bytes, self._progress_s = log_bytes, now_s
        if now_s - self._progress_s > self.quiet_s_max:
            return f"does not work, and has logged nothing for {self.quiet_s_max:.0f} s"
        if now_s - self.started_s > START_S_MAX:
            return f"did not work within {START_S_MAX:.0f} s"
        return None


class ServerWatch:
    """Owns the process of one server, in the supervisor's event loop; calls `on_change` when its status changed."""

    def __init__(self, server: Server, report: OnProgress, on_change: Callable[[], None]) -> None:
        self.server = server
        self.ready = asyncio.Event()
        self.spawning = False
        self._report = report
        self._on_change = on_change
        self._log = server.site.home.log(server.name)
        self._log_offset = 0
        self._process: Process | None = None
        self._identity: ProcessId | None = None
        self._command: Command | None = None
        self._state = "stopped"
        self._restarts = 0
        self._deaths: deque[float] = deque()
        self.keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def status(self) -> ServerState:
        return ServerState(
            name=self.server.name,
            process=self._identity,
            state=self._state,
            restarts=self._restarts,
            address=self.server.address,
            log=str(self._log),
        )

    async def start(self) -> None:
        """Start the server and return when it has proved to work; from then on it is kept alive.

        Raises:
            StackError: it ended or did not work in time; names its log and shows the last lines.
        """
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))
        await self._launch("start")
        self.keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)
        started_s = time.monotonic()
        await self._end(self._command.stop_signal if self._command else signal.SIGTERM)
        self._become("stopped")
        seconds = time.monotonic() - started_s
        self._report(StepProgress(f"stop {self.server.name}", "", seconds=seconds, end=True))

    async def _launch(self, step: str) -> None:
        started_s = time.monotonic()
        self._become("starting" if step == "start" else "restarting")
        self._report(StepProgress(f"{step} {self.server.name}", "", seconds=0.0))
        try:
            await asyncio.to_thread(self.server.prepare)
            self._command = self.server.command()
            process = await self._spawn(self._command)
        except OSError as error:
            raise StackError(f"{self.server.name} could not be started: {error}") from error
        limit = StartLimit(started_s, self.server.start_quiet_s_max, self._log_offset)
        probing = asyncio.create_task(self._probe(limit))
        dying = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((probing, dying), return_when=asyncio.FIRST_COMPLETED)
            if not probing.done():
                raise self._failure(f"ended with {_ending(process.returncode)} while it started")
            await probing
        finally:
            for task in (probing, dying):
                task.cancel()
        self.ready.set()
        self._become("running")
        seconds = time.monotonic() - started_s
        self._report(
            StepProgress(f"{step} {self.server.name}", self.server.address, seconds=seconds, end=True)
        )

    async def _spawn(self, command: Command) -> Process:
        self.spawning = True
        try:
            with self._log.open("ab") as log:
                self._log_offset = log.tell()
                self._process = await asyncio.create_subprocess_exec(
                    *launch_line(command),
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.server.environment(command),
                    cwd="/",
                    start_new_session=True,
                )
        finally:
            self.spawning = False
        self._identity = identify(self._process.pid)
        self._on_change()
        return self._process

    async def _probe(self, limit: StartLimit) -> None:
        while True:
            try:
                await asyncio.to_thread(self.server.probe)
                return
            except NotReady as reason:
                if problem := limit.exceeded(time.monotonic(), self._log.stat().st_size):
                    raise self._failure(f"{problem} ({reason})") from reason
            await asyncio.sleep(PROBE_PERIOD_S)

    async def _keep(self) -> None:
        while True:
            ending = await self._until_death()
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths and self._deaths[0] < now - DEATHS_WINDOW_S:
                self._deaths.popleft()
            if len(self._deaths) >= DEATHS_MAX:
                self._become("failed")
                times = f"{DEATHS_MAX} times within {DEATHS_WINDOW_S:.0f} s"
                message = f"{ending}, {times}: given up; see {self._log}"
                self._report(StepProgress(self.server.name, message, end=True, failed=True))
                return
            self._restarts += 1
            self._become("restarting")
            self._report(StepProgress(self.server.name, f"{ending}; restarting it, see {self._log}"))
            await asyncio.sleep(BACKOFF_S[min(len(self._deaths) - 1, len(BACKOFF_S) - 1)])
            try:
                await self._launch("restart")
            except StackError as error:
                self._report(StepProgress(self.server.name, str(error)))
                await self._end(signal.SIGKILL)

    async def _until_death(self) -> str:
        assert self._process is not None
        dying = asyncio.create_task(self._process.wait())
        try:
            while not dying.done():
                await asyncio.wait((dying,), timeout=HEAL_PERIOD_S)
                if not dying.done() and (healed := await asyncio.to_thread(self.server.heal)):
                    self._report(StepProgress(self.server.name, healed))
        finally:
            dying.cancel()
        self._identity = None
        return f"{self.server.name} ended with {_ending(self._process.returncode)}"

    async def _end(self, sig: int) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None and self._identity is not None:
            self._identity.send(sig)
            try:
                await asyncio.wait_for(process.wait(), self.server.stop_timeout_s)
            except TimeoutError:
                self._identity.send(signal.SIGKILL)
                await process.wait()
        self._identity = None

    def _become(self, state: str) -> None:
        self._state = state
        self._on_change()

    def _failure(self, what: str) -> StackError:
        lines = tail(self._log, offset=self._log_offset) or "(it wrote nothing)"
        return StackError(f"{self.server.name} {what}; its log {self._log} ends with:\n{lines}")


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"

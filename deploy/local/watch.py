"""One server under watch: started, probed, restarted when it dies, stopped."""

import asyncio
import signal
import time
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Callable

from daemon.errors import StackError
from deploy.local.home import ServerState
from deploy.local.process import ProcessId, identify, tail
from deploy.local.progress import OnProgress, Progress
from deploy.local.servers.base import Command, NotReady, Server, launch_line

PROBE_PERIOD_S = 0.1
HEAL_PERIOD_S = 5.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# This many deaths within the window, and the server is given up.
DEATHS_MAX = 6
DEATHS_WINDOW_S = 60.0


class Watch:
    """Owns the process of one server, in the supervisor's event loop."""

    def __init__(self, server: Server, report: OnProgress, on_change: Callable[[], None]) -> None:
        """`report` gets the news, `on_change` is called when `status()` changed."""
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
        """Returns when the server has proved to work; from then on it is kept alive.

        Raises:
            StackError: it ended or did not work in time; names its log and shows the last lines.
        """
        self._rotate_log()
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
        self._report(Progress(f"stop {self.server.name}", "", seconds=seconds, finished=True))

    async def _launch(self, step: str) -> None:
        started_s = time.monotonic()
        self._become("starting" if step == "start" else "restarting")
        self._report(Progress(f"{step} {self.server.name}", "", seconds=0.0))
        try:
            await asyncio.to_thread(self.server.prepare)
            self._command = self.server.command()
            process = await self._spawn(self._command)
        except OSError as error:
            raise StackError(f"{self.server.name} could not be started: {error}") from error
        probing = asyncio.create_task(self._probe(time.monotonic() + self.server.start_timeout_s))
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
            Progress(f"{step} {self.server.name}", self.server.address, seconds=seconds, finished=True)
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

    async def _probe(self, deadline: float) -> None:
        while True:
            try:
                await asyncio.to_thread(self.server.probe)
                return
            except NotReady as reason:
                if time.monotonic() > deadline:
                    raise self._failure(
                        f"did not work within {self.server.start_timeout_s:.0f} s ({reason})"
                    ) from reason
            await asyncio.sleep(PROBE_PERIOD_S)

    async def _keep(self) -> None:
        while True:
            ending = await self._until_death()
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths and self._deaths[0] < now - DEATHS_WINDOW_S:
                self._deaths.popleft()
            if len(self._deaths) >= DEATHS_MAX:
                await self._give_up(ending)
                return
            self._restarts += 1
            self._become("restarting")
            self._report(Progress(self.server.name, f"{ending}; restarting it, see {self._log}"))
            await asyncio.sleep(BACKOFF_S[min(len(self._deaths) - 1, len(BACKOFF_S) - 1)])
            try:
                await self._launch("restart")
            except StackError as error:
                self._report(Progress(self.server.name, str(error)))
                await self._end(signal.SIGKILL)

    async def _until_death(self) -> str:
        assert self._process is not None
        dying = asyncio.create_task(self._process.wait())
        try:
            while not dying.done():
                await asyncio.wait((dying,), timeout=HEAL_PERIOD_S)
                if not dying.done() and (healed := await asyncio.to_thread(self.server.heal)):
                    self._report(Progress(self.server.name, healed))
        finally:
            dying.cancel()
        self._identity = None
        return f"{self.server.name} ended with {_ending(self._process.returncode)}"

    async def _give_up(self, ending: str) -> None:
        self._become("failed")
        message = f"{ending}, {DEATHS_MAX} times within {DEATHS_WINDOW_S:.0f} s: given up; see {self._log}"
        self._report(Progress(self.server.name, message, finished=True))

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

    def _rotate_log(self) -> None:
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"

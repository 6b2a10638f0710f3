"""The process that starts, watches, restarts and stops the servers of one home.

`Stack.up` starts it, as `python -m deploy.local.supervisor SPEC`. It holds a lock on the home while it lives, so
that there is only one, and tells what it does through the home's files. It ends on SIGTERM, when its standard input
is closed (the owner of a foreground stack is gone), or when its home was deleted.
"""

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from daemon.errors import StackError
from deploy.local import ports
from deploy.local.home import Addresses, Home, StackState, StepProgress
from deploy.local.process import SERVER_MARK, end, identify, marked, orphans
from deploy.local.servers import SERVERS
from deploy.local.servers.base import Artifacts, Site
from deploy.local.watch import ServerWatch

EXIT_HOME_TAKEN = 3
LOCK_TIMEOUT_S = 3.0
PR_SET_CHILD_SUBREAPER = 36
# The signal that makes a ready supervisor write its state, which proves that it lives.
ANSWER = signal.SIGUSR1


@dataclass(frozen=True)
class StackSpec:
    """The supervisor's argument, as JSON; `attached`: the servers end with the process that started it."""

    home: Path
    servers: tuple[str, ...]
    fixed_ports: dict[str, int]
    artifacts: Artifacts
    attached: bool


SPEC = TypeAdapter(StackSpec)


class Supervisor:
    """Runs inside one event loop, on the main thread: the kernel ties PR_SET_PDEATHSIG to the thread that forks."""

    def __init__(self, spec: StackSpec, lock: IO[str]) -> None:
        self._spec = spec
        self._lock_inode = os.fstat(lock.fileno()).st_ino
        self._home = Home(spec.home)
        self._phase = "starting"
        self._message = ""
        self._revision = 0
        self._watches: dict[str, ServerWatch] = {}
        self._stop = asyncio.Event()
        identity = identify(os.getpid())
        assert identity is not None
        self._identity = identity

    async def run(self) -> int:
        """Serve until told to stop, and return the exit status."""
        self._progress: IO[str] = self._home.progress.open("w", encoding="utf-8")
        self._install_stops()
        try:
            await self._serve()
            self._phase = "stopping"
        except StackError as error:
            self._phase, self._message = "failed", str(error)
            summary = self._message.partition("\n")[0]
            self._report(StepProgress("stack", summary, end=True, failed=True))
        except BaseException as error:
            self._phase = "failed"
            self._message = f"the supervisor broke ({error!r}); see {self._home.supervisor_log}"
            raise
        finally:
            self._save()
            await self._stop_all()
            self._phase = "failed" if self._phase == "failed" else "stopped"
            self._save()
        return 1 if self._phase == "failed" else 0

    async def _serve(self) -> None:
        """Start the servers and return when the stack is to stop."""
        started_s = time.monotonic()
        self._home.forget_addresses()
        await asyncio.to_thread(recover, self._home)
        chosen = ports.choose(self._spec.fixed_ports, self._home.ports())
        self._home.write_ports(chosen)
        site = Site(self._home, chosen, self._spec.artifacts)
        self._watches = {
            name: ServerWatch(SERVERS[name](site), self._report, self._save) for name in self._spec.servers
        }
        self._save()
        await self._start_all(started_s, site)
        stop = asyncio.create_task(self._stop.wait())
        keepers = {watch.keeper for watch in self._watches.values() if watch.keeper}
        while not stop.done():
            # A keeper that returned has given its server up; one that raised is a bug, and ends the stack.
            ended, _ = await asyncio.wait({stop, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            keepers -= ended
            for task in ended:
                task.result()

    async def _start_all(self, started_s: float, site: Site) -> None:
        stop = asyncio.create_task(self._stop.wait())
        starts = [asyncio.create_task(self._start(watch)) for watch in self._watches.values()]
        everything = asyncio.gather(*starts)
        try:
            await asyncio.wait((stop, everything), return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                await everything
                seconds = time.monotonic() - started_s
                # Before the state: whoever sees that the stack is ready then finds all news in the file.
                self._report(StepProgress("stack", "ready", None, None, seconds, end=True))
                self._home.write_addresses(Addresses.of(site.ports))
                self._phase = "ready"
                self._save()
        finally:
            for task in (stop, *starts):
                task.cancel()
            await asyncio.gather(stop, *starts, return_exceptions=True)

    async def _start(self, watch: ServerWatch) -> None:
        for need in watch.server.needs:
            await self._watches[need].ready.wait()
        await watch.start()

    async def _stop_all(self) -> None:
        """Stop clients before their servers: PostgreSQL would wait for Connect's replication stream."""
        if self._holds_home():
            self._home.forget_addresses()
        watches = list(self._watches.values())
        first = [watch for watch in watches if watch.server.needs]
        for group in (first, [watch for watch in watches if watch not in first]):
            await asyncio.gather(*(watch.stop() for watch in group))
        while pids := orphans(()):
            reap(pids)
            await asyncio.sleep(0.02)

    def _install_stops(self) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(sig, self._stop.set)
        loop.add_signal_handler(ANSWER, self._save)
        if self._spec.attached:
            loop.add_reader(sys.stdin.fileno(), self._read_owner)
        self._chores = asyncio.create_task(self._look_after())

    def _read_owner(self) -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._stop.set()

    async def _look_after(self) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(1.0)
            watches = self._watches.values()
            # A child that its watch does not know yet would be taken for an orphan.
            if not any(watch.spawning for watch in watches):
                reap(orphans(watch.pid for watch in watches if watch.pid is not None))
            if not self._holds_home():
                # The folder was deleted: nobody could stop this process any more.
                self._stop.set()

    def _report(self, progress: StepProgress) -> None:
        self._progress.write(json.dumps(asdict(progress)) + "\n")
        self._progress.flush()

    def _save(self) -> None:
        servers = tuple(watch.status() for watch in self._watches.values())
        if self._holds_home():
            self._revision += 1
            state = StackState(self._identity, self._revision, self._phase, self._message, servers)
            self._home.write_state(state)

    def _holds_home(self) -> bool:
        """Return False where the folder was deleted, even if another stack has created it again."""
        try:
            return self._home.lock.stat().st_ino == self._lock_inode
        except FileNotFoundError:
            return False


def reap(pids: Iterable[int]) -> None:
    """End adopted processes and read their exit status."""
    for pid in pids:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)


def recover(home: Home) -> None:
    """End the servers that a killed supervisor left running."""
    state = home.state()
    recorded = [server.process for server in state.servers if server.process] if state else []
    # SIGQUIT: PostgreSQL ends its children and unlocks its data folder; the JVMs merely print their threads.
    postgres = state.server("postgres") if state else None
    if postgres and postgres.process:
        end([postgres.process], sig=signal.SIGQUIT)
    end({*recorded, *marked(SERVER_MARK, home.path)})


def take(home: Home) -> IO[str] | None:
    """Return the home's lock, or None where another supervisor holds it."""
    home.create()
    lock = home.lock.open("a", encoding="utf-8")
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                return None
            time.sleep(0.05)


def main(arguments: Sequence[str]) -> int:
    spec = SPEC.validate_json(arguments[0])
    lock = take(Home(spec.home))
    if lock is None:
        return EXIT_HOME_TAKEN
    # What a dead server leaves behind becomes our child, so that no process escapes.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    async def supervise() -> int:
        # Twice the servers: a probe that hangs in a vendor's client must not delay another server's.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * len(SERVERS)))
        return await Supervisor(spec, lock).run()

    with lock:
        return asyncio.run(supervise())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The embedded stack's public face: up, down, status, addresses, and faults for tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGKILL

from daemon.errors import StackError
from deploy.local import artifacts, ports
from deploy.local.home import Addresses, Home, StackState, default_home
from deploy.local.process import SUPERVISOR_MARK, ProcessId, end, marked, tail
from deploy.local.progress import OnProgress, Progress, silent
from deploy.local.servers import SERVERS, java
from deploy.local.servers.triton import shared_libpython
from deploy.local.supervisor import ANSWER, EXIT_HOME_TAKEN, Spec, recover

__all__ = ["Addresses", "Progress", "ServerStatus", "Stack", "default_home"]

POLL_S = 0.05
STOP_TIMEOUT_S = 45.0
ANSWER_TIMEOUT_S = 10.0
# Supervisors that this process started. To drop one would close the pipe that holds a foreground stack up.
_children: dict[Path, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class ServerStatus:
    """`state`: starting, running, restarting, failed (given up) or stopped."""

    name: str
    pid: int | None
    state: str
    restarts: int
    address: str
    log: str


class Stack:
    """The stack of one home; any number of processes may hold one of these for the same home."""

    def __init__(
        self, home: Path, ports: Mapping[str, int] | None = None, servers: Sequence[str] | None = None
    ) -> None:
        self._home = Home(home.resolve())
        self._fixed_ports = dict(ports or {})
        self._servers = _with_needs(servers)

    def up(self, on_progress: OnProgress = silent, *, detach: bool) -> Addresses:
        """Start the stack, or attach to the one that runs in this home.

        Args:
            on_progress: told each step.
            detach: the servers outlive this process; otherwise they end with it, however it ends.

        Raises:
            StackError: a prerequisite is missing, a download failed, or a server did not start: names its log.
        """
        ports.check_names(self._fixed_ports)
        if self._running() is not None and (addresses := self._await_ready(None, on_progress)) is not None:
            return addresses
        supervisor = self._spawn(self._prepare(on_progress), attached=not detach)
        try:
            addresses = self._await_ready(supervisor, on_progress)
        except BaseException:
            supervisor.terminate()
            supervisor.wait()
            raise
        if addresses is None:
            log = self._home.supervisor_log
            raise StackError(f"the stack ended while it started; {log} ends with:\n{tail(log)}")
        return addresses

    def wait(self, on_progress: OnProgress = silent) -> None:
        """Block until the stack is stopped, by SIGTERM or SIGINT to this process or by `down` elsewhere.

        Raises:
            StackError: a server was given up, or the supervisor was killed.
        """
        stopped: list[int] = []
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            for sig in (signal.SIGTERM, signal.SIGINT):
                handlers[sig] = signal.signal(sig, lambda number, frame: stopped.append(number))
        news = _News(self._home.progress, from_end=True)
        try:
            while not stopped:
                news.deliver(on_progress)
                state = self._home.state()
                if state is None or state.phase == "stopped":
                    return
                if state.phase == "failed":
                    raise StackError(state.message)
                if not state.supervisor.alive:
                    raise StackError(
                        f"the supervisor was killed, and its servers with it (log: {self._home.supervisor_log}); "
                        "run `livevec up` again"
                    )
                for server in state.servers:
                    if server.state == "failed":
                        raise StackError(
                            f"{server.name} died again and again and was given up; see {server.log}"
                        )
                time.sleep(POLL_S)
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)

    def down(self) -> None:
        """Stop every process of this home, whoever started it; nothing to do is no error."""
        # Found by their mark, too: the home's files may have been deleted.
        supervisors = set(marked(SUPERVISOR_MARK, self._home.path))
        if (state := self._home.state()) is not None:
            supervisors.add(state.supervisor)
        end(supervisors, sig=signal.SIGTERM, timeout_s=STOP_TIMEOUT_S)
        if (child := _children.pop(self._home.path, None)) is not None:
            if child.stdin is not None:
                child.stdin.close()
            child.wait()
        recover(self._home)
        self._home.forget_addresses()

    def status(self) -> list[ServerStatus]:
        """Every server; all `stopped` where no stack runs."""
        state = self._running()
        found = []
        for name in SERVERS:
            server = state.server(name) if state else None
            if server is None:
                found.append(ServerStatus(name, None, "stopped", 0, "", str(self._home.log(name))))
                continue
            alive = server.process is not None and server.process.alive
            found.append(
                ServerStatus(
                    name=name,
                    pid=server.process.pid if server.process and alive else None,
                    # Between a death and the supervisor's notice of it.
                    state="restarting" if server.state == "running" and not alive else server.state,
                    restarts=server.restarts,
                    address=server.address,
                    log=server.log,
                )
            )
        return found

    def addresses(self) -> Addresses:
        """Raises StackError where no stack is up in this home."""
        found = self._home.addresses()
        if found is None or self._running() is None:
            raise StackError(f"no stack is up in {self._home.path}; start it with `livevec up`")
        return found

    def pid(self, name: str) -> int:
        """Raises StackError where the server has no process now."""
        return self._process(name).pid

    def kill(self, name: str, sig: int = SIGKILL) -> None:
        """Send a signal to a server, for fault tests; the supervisor starts it again, same port, same data."""
        if not self._process(name).send(sig):
            raise StackError(f"{name} has no process now; see {self._home.log(name)}")

    def _process(self, name: str) -> ProcessId:
        state = self._running()
        server = state.server(name) if state else None
        if server is None or server.process is None or not server.process.alive:
            raise StackError(f"{name} has no process now; see `livevec status` and {self._home.log(name)}")
        return server.process

    def _running(self) -> StackState | None:
        state = self._home.state()
        return state if state is not None and state.supervisor.alive else None

    def _prepare(self, on_progress: OnProgress) -> Spec:
        kafka, triton = "kafka" in self._servers, "triton" in self._servers
        self._home.create()
        if kafka:
            java.check()
        if triton:
            shared_libpython()
        found = artifacts.ensure(artifacts.default_cache(), on_progress, kafka=kafka, triton=triton)
        return Spec(
            home=str(self._home.path),
            servers=self._servers,
            fixed_ports=self._fixed_ports,
            artifacts={name: str(path) for name, path in asdict(found).items()},
            attached=False,
        )

    def _spawn(self, spec: Spec, *, attached: bool) -> subprocess.Popen[bytes]:
        spec = Spec(**{**asdict(spec), "attached": attached})
        with self._home.supervisor_log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy.local.supervisor", spec.to_json()],
                stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, SUPERVISOR_MARK: str(self._home.path)},
                # Ctrl-C in a terminal goes to its whole group; the servers must be stopped in their order.
                start_new_session=True,
            )
        _children[self._home.path] = process
        return process

    def _await_ready(
        self, supervisor: subprocess.Popen[bytes] | None, on_progress: OnProgress
    ) -> Addresses | None:
        """Follow `supervisor`, or whichever runs here; None where it ended without a word."""
        news = _News(self._home.progress)
        while True:
            # Before the state is read: what an ended process wrote last is then seen.
            exited = supervisor.poll() if supervisor else None
            state = self._home.state()
            alive = state is not None and state.supervisor.alive
            ours = supervisor is not None and state is not None and state.supervisor.pid == supervisor.pid
            if state is not None and (alive or ours):
                news.deliver(on_progress)
                if state.phase == "failed":
                    raise StackError(state.message)
                addresses = self._home.addresses()
                if state.phase == "ready" and alive and addresses is not None:
                    if not ours and not self._answers(state):
                        continue
                    self._check_matches(state)
                    return addresses
            if exited == EXIT_HOME_TAKEN:
                supervisor = None
            elif exited is not None or (supervisor is None and not alive):
                return None
            time.sleep(POLL_S)

    def _answers(self, state: StackState) -> bool:
        """False where the supervisor is dying: a killed process looks alive until it is scheduled again."""
        state.supervisor.send(ANSWER)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while state.supervisor.alive:
            now = self._home.state()
            if now is not None and now.revision != state.revision:
                return now.supervisor == state.supervisor
            if time.monotonic() > deadline:
                raise StackError(
                    f"the supervisor (pid {state.supervisor.pid}) does not answer; run `livevec down`, then "
                    "`livevec up`"
                )
            time.sleep(POLL_S / 10)
        return False

    def _check_matches(self, state: StackState) -> None:
        """A running stack that we attached to must be the one that was asked for."""
        running = [server.name for server in state.servers]
        missing = [name for name in self._servers if name not in running]
        remembered = self._home.ports()
        moved = [name for name, port in self._fixed_ports.items() if remembered.get(name) != port]
        if missing or moved:
            what = (
                f"runs without {', '.join(missing)}" if missing else f"has other ports for {', '.join(moved)}"
            )
            raise StackError(f"the stack in {self._home.path} {what}; run `livevec down` first")


class _News:
    """Follows a supervisor's progress file."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def deliver(self, on_progress: OnProgress) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            on_progress(Progress(**json.loads(line)))


def _with_needs(servers: Sequence[str] | None) -> tuple[str, ...]:
    wanted = set(SERVERS if servers is None else servers)
    for name in sorted(wanted):
        if name not in SERVERS:
            raise StackError(f"there is no server {name!r}; there are {', '.join(SERVERS)}")
        wanted.update(SERVERS[name].needs)
    return tuple(name for name in SERVERS if name in wanted)

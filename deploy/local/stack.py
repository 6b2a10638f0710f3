"""The embedded stack as others use it: up, down, status, addresses, and faults for tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

from daemon.errors import StackError
from deploy.local import artifacts, ports
from deploy.local.home import Addresses, Home, OnProgress, ServerState, StackState, StepProgress, silent
from deploy.local.process import SUPERVISOR_MARK, ProcessId, end, marked, tail
from deploy.local.servers import SERVERS, java
from deploy.local.servers.triton import shared_libpython
from deploy.local.supervisor import ANSWER, EXIT_HOME_TAKEN, SPEC, StackSpec, recover

__all__ = ["Addresses", "Stack", "StepProgress"]

POLL_S = 0.05
STOP_TIMEOUT_S = 45.0
ANSWER_TIMEOUT_S = 10.0
# Supervisors that this process started. Dropping one would close the pipe that keeps a foreground stack up.
_children: dict[Path, subprocess.Popen[bytes]] = {}


class Stack:
    """The stack of one home; any number of processes may each have such an object for the same home."""

    def __init__(
        self, home: Path, ports: Mapping[str, int] | None = None, servers: Sequence[str] | None = None
    ) -> None:
        self._home = Home(home.resolve())
        self._fixed_ports = dict(ports or {})
        self._servers = _with_needs(servers)

    def up(self, on_progress: OnProgress = silent, *, detach: bool) -> Addresses:
        """Start the stack, or attach to the one that runs in this home.

        Args:
            on_progress: is given the news of each step.
            detach: the servers outlive this process; otherwise they end with it, however it ends.

        Raises:
            StackError: a prerequisite is missing, a download failed, or a server did not start: names its log.
        """
        ports.check_names(self._fixed_ports)
        if self._running() is not None and (addresses := self._await_ready(None, on_progress)) is not None:
            return addresses
        supervisor = self._spawn(self._prepare(on_progress, attached=not detach))
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
        """Stop every process of this home, whoever started it; it is no error if there is none."""
        # Also found by their mark: the home's files may have been deleted.
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

    def status(self) -> list[ServerState]:
        """Return the state of every server; all are `stopped` where no stack runs."""
        state = self._running()
        return [self._server(name, state) for name in SERVERS]

    def _server(self, name: str, state: StackState | None) -> ServerState:
        server = state.server(name) if state else None
        if server is None:
            return ServerState(name, None, "stopped", 0, "", str(self._home.log(name)))
        if server.process is not None and server.process.alive:
            return server
        # A server may have died and the supervisor not have noticed it yet.
        return replace(
            server, process=None, state="restarting" if server.state == "running" else server.state
        )

    def addresses(self) -> Addresses:
        """Return the addresses of the running stack, or raise StackError where none is up in this home."""
        addresses = self._home.addresses()
        if addresses is None or self._running() is None:
            raise StackError(f"no stack is up in {self._home.path}; start it with `livevec up`")
        return addresses

    def pid(self, name: str) -> int:
        """Return the pid of a server, or raise StackError where it has no process now."""
        return self._process(name).pid

    def kill(self, name: str, sig: int = SIGKILL) -> None:
        """Send a signal to a server, for fault tests; the supervisor starts it again with the same port and data."""
        if not self._process(name).send(sig):
            raise StackError(f"{name} has no process now; see {self._home.log(name)}")

    def _process(self, name: str) -> ProcessId:
        server = self._server(name, self._running())
        if server.process is None:
            raise StackError(f"{name} has no process now; see `livevec status` and {self._home.log(name)}")
        return server.process

    def _running(self) -> StackState | None:
        state = self._home.state()
        return state if state is not None and state.supervisor.alive else None

    def _prepare(self, on_progress: OnProgress, *, attached: bool) -> StackSpec:
        kafka, triton = "kafka" in self._servers, "triton" in self._servers
        self._home.create()
        if kafka:
            java.check()
        if triton:
            shared_libpython()
        return StackSpec(
            home=self._home.path,
            servers=self._servers,
            fixed_ports=self._fixed_ports,
            artifacts=artifacts.ensure(artifacts.default_cache(), on_progress, kafka=kafka, triton=triton),
            attached=attached,
        )

    def _spawn(self, spec: StackSpec) -> subprocess.Popen[bytes]:
        with self._home.supervisor_log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy.local.supervisor", SPEC.dump_json(spec).decode()],
                stdin=subprocess.PIPE if spec.attached else subprocess.DEVNULL,
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
        """Follow `supervisor`, or whichever runs here; return None where it ended without a word."""
        news = _News(self._home.progress)
        while True:
            # Asked before the state is read, so that what an ended process wrote last is seen.
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
        """Return False where the supervisor is dying: a killed process looks alive until it is scheduled again."""
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
        """Raise StackError where the running stack lacks a server or a port that was asked for."""
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
            on_progress(StepProgress(**json.loads(line)))


def _with_needs(servers: Sequence[str] | None) -> tuple[str, ...]:
    names = set(SERVERS if servers is None else servers)
    for name in sorted(names):
        if name not in SERVERS:
            raise StackError(f"there is no server {name!r}; there are {', '.join(SERVERS)}")
        names.update(SERVERS[name].needs)
    return tuple(name for name in SERVERS if name in names)

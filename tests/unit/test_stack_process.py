"""Who a pid is, against real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.process import SERVER_MARK, ProcessId, end, identify, marked, orphans, tail


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_itself_until_it_ends(sleeper: "subprocess.Popen[bytes]") -> None:
    identity = identify(sleeper.pid)
    assert identity is not None
    assert identity.alive
    sleeper.kill()
    sleeper.wait()
    assert not identity.alive
    assert identify(sleeper.pid) is None


def test_a_pid_that_another_process_got_is_not_the_old_process(sleeper: "subprocess.Popen[bytes]") -> None:
    identity = identify(sleeper.pid)
    assert identity is not None
    earlier = ProcessId(sleeper.pid, identity.start_ticks - 1)
    assert not earlier.alive
    assert not earlier.send(signal.SIGKILL)
    end([earlier])
    assert sleeper.poll() is None


def test_a_dead_child_that_nobody_waited_for_is_not_alive(sleeper: "subprocess.Popen[bytes]") -> None:
    identity = identify(sleeper.pid)
    assert identity is not None
    os.kill(sleeper.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while identity.alive:
        assert time.monotonic() < deadline
    assert Path(f"/proc/{sleeper.pid}").exists()


def test_end_kills_what_ignores_the_first_signal() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        identity = identify(stubborn.pid)
        assert identity is not None
        end([identity], sig=signal.SIGTERM, timeout_s=0.2)
        assert stubborn.wait() == -signal.SIGKILL


def test_marks_tell_homes_apart_even_where_one_path_begins_another(tmp_path: Path) -> None:
    environment = {**os.environ, SERVER_MARK: str(tmp_path / "home")}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        try:
            assert marked(SERVER_MARK, tmp_path / "home") == [identify(process.pid)]
            assert marked(SERVER_MARK, tmp_path / "hom") == []
            assert marked(SERVER_MARK, tmp_path / "home2") == []
        finally:
            process.kill()


def test_orphans_are_children_in_other_sessions_that_are_not_known(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as server:
        try:
            assert server.pid in orphans([])
            assert server.pid not in orphans([server.pid])
            assert sleeper.pid not in orphans([])
        finally:
            server.kill()


def test_tail_shows_only_what_this_start_wrote(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("an older run\n" + "".join(f"line {n}\n" for n in range(30)))
    offset = len("an older run\n")
    assert tail(log, offset=offset, lines=3) == "line 27\nline 28\nline 29"
    assert "older" not in tail(log, offset=offset, lines=100)
    assert tail(tmp_path / "missing.log") == ""

"""Fixtures of the whole suite: one embedded stack for the session, started by the first test that asks for it.

Marks what a test needs, so that `-m "not stack"` leaves the slow ones out, and tells xdist what belongs together.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable
from tests.support.stack_fixture import running_stack, throwaway_home

CHAOS = Path(__file__).parent / "chaos"
HISTORIES = Path(__file__).parent / "histories"
WORKFLOWS = Path(__file__).parent / "workflows"


def pytest_configure() -> None:
    """Undo what the processes of a test would inherit and production's do not.

    A shell starts what runs in the background with SIGINT ignored. An environment that forbids to store bytecode makes
    each of some hundred daemons and commands compile livevec anew, in a second.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist, which writes the groups into the tests' names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the stack (`stack`) and those that break it (`chaos`), and group them for xdist.

    With `--dist loadgroup` a group runs in one process. The tests of the stack are two of about the same length, each
    with a stack of its own: those of the workflows with those that break it, and the others. Each other module is one,
    for its own servers.
    """
    for item in items:
        group = item.path.stem
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)
            group = "stack" if WORKFLOWS not in item.path.parents else "workflows and chaos"
        if CHAOS in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            group = "workflows and chaos"
        # Histories share nothing: each block fills up whichever process has time.
        if item.get_closest_marker("xdist_group") is None and HISTORIES not in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Six real servers, shared by all tests; a test that kills one leaves it running again."""
    with throwaway_home() as home, running_stack(home) as running:
        yield running


@pytest.fixture
def mirrored(stack: Stack, tmp_path: Path) -> Iterator[MirroredTable]:
    """A table of its own with topics and configuration, captured by the shared connector; no daemon runs yet."""
    table = MirroredTable(stack, tmp_path)
    try:
        yield table
    finally:
        table.close()


@pytest.fixture
def mirrored_alone(stack: Stack, tmp_path: Path) -> Iterator[MirroredTable]:
    """A table like `mirrored`, with a source and a connector of its own, for a test that changes these."""
    table = MirroredTable(stack, tmp_path, own_connector=True)
    try:
        yield table
    finally:
        table.close()

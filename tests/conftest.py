"""Fixtures of the whole suite: one embedded stack for the session, started by the first test that asks for it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable
from tests.support.stack_fixture import running_stack, throwaway_home


def pytest_configure() -> None:
    """A shell starts what runs in the background with SIGINT ignored, which all processes of a test would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Six real servers, shared by all tests; a test that kills one leaves it running again."""
    with throwaway_home() as home, running_stack(home) as running:
        yield running


@pytest.fixture
def mirrored(stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MirroredTable]:
    """A table of its own with connector, topics and configuration; no daemon runs yet."""
    table = MirroredTable(stack, tmp_path)
    try:
        yield table
    finally:
        table.close()

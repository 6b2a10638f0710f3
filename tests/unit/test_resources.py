"""What the worker's activities share: a projection that is being opened holds up nobody who needs another one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.core.change import Operation
from daemon.core.work import Refusal
from daemon.errors import RejectRow, StopPipeline
from daemon.settings import Config
from daemon.telemetry.health import Health
from daemon.telemetry.metrics import Metrics
from tests.support.shell.shell import PIPELINE, configuration
from workflows.resources import Resources

Opener = Callable[..., AbstractAsyncContextManager[Any]]


class Openings:
    """Opens projections that are nothing but their number; version 1 only once `let_go` is set."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.dead_letters: Any = None

    @asynccontextmanager
    async def open(
        self, config: Config, pipeline: Any, *, version: int, dead_letters: Any, **_: Any
    ) -> AsyncIterator[Any]:
        if version == 1:
            await self.let_go.wait()
        self.opened.append(version)
        self.dead_letters = dead_letters
        yield SimpleNamespace(version=SimpleNamespace(number=version), projector=object())
        self.closed.append(version)


@pytest.fixture
async def resources() -> AsyncIterator[Resources]:
    metrics = Metrics()
    shared = Resources(configuration(), metrics, Health(metrics))
    yield shared
    await shared.close()


async def use(resources: Resources, version: int, openings: Openings) -> None:
    async with resources._shared(PIPELINE, version, openings.open):
        pass


async def test_a_version_that_cannot_be_opened_yet_holds_up_no_other(resources: Resources) -> None:
    openings = Openings()
    waiting = [asyncio.ensure_future(use(resources, 1, openings)) for _ in range(2)]
    await use(resources, 2, openings)
    assert openings.opened == [2]
    openings.let_go.set()
    await asyncio.gather(*waiting)
    assert openings.opened == [2, 1], "both users of version 1 share one"


async def test_one_that_failed_is_closed_by_its_last_user_and_opened_anew(resources: Resources) -> None:
    openings = Openings()
    async with resources._shared(PIPELINE, 2, openings.open):
        with pytest.raises(StopPipeline):
            async with resources._shared(PIPELINE, 2, openings.open):
                raise StopPipeline("the table has changed")
        assert (openings.opened, openings.closed) == ([2], [])
        await use(resources, 2, openings)
        assert openings.opened == [2, 2]
    assert openings.closed == [2]


async def test_refusals_are_kept_for_the_tasks_of_their_block_alone(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    openings, error = Openings(), RejectRow("too long", "oversized_text")
    written: list[str] = []

    class Letters:
        async def put(self, refusal: Refusal, error: RejectRow) -> None:
            written.append(refusal.id)

    monkeypatch.setattr(resources, "dead_letter_topic", lambda *_: Letters())
    async with resources._shared(PIPELINE, 2, openings.open):
        refuse = openings.dead_letters.put

        async def other() -> None:
            await started.wait()
            await refuse(Refusal("other", Operation.REREAD, None, 0.0), error)

        started = asyncio.Event()
        beside = asyncio.ensure_future(other())
        with resources.refusals() as kept:
            await asyncio.ensure_future(refuse(Refusal("mine", Operation.REREAD, None, 0.0), error))
            started.set()
            await beside
        assert kept == {"mine": error}
        await refuse(Refusal("later", Operation.REREAD, None, 0.0), error)
    assert written == ["other", "later"]

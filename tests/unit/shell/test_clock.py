"""The virtual clock of the shell's tests."""

import asyncio
import time

import pytest

from tests.support.shell.clock import EPOCH_S, Deadlock, VirtualLoop, run


def test_time_jumps_to_the_next_timer_and_all_clocks_tell_it() -> None:
    order: list[tuple[str, float, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((name, time.monotonic(), time.time() - EPOCH_S))

    async def main(loop: VirtualLoop) -> None:
        await asyncio.gather(sleeper("late", 86_400.0), sleeper("early", 0.5))
        assert loop.time() == 86_400.0

    begun_s = time.perf_counter()
    run(main)
    assert order == [("early", 0.5, 0.5), ("late", 86_400.0, 86_400.0)]
    assert time.perf_counter() - begun_s < 60, "the real clock was waited for"


def test_the_real_clocks_are_back_after_a_run() -> None:
    async def main(_: VirtualLoop) -> float:
        return time.time()

    assert run(main) == EPOCH_S
    assert time.time() > EPOCH_S + 1e6


def test_tasks_that_wait_for_one_another_are_told() -> None:
    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    async def main(_: VirtualLoop) -> None:
        await waits_for_ever()

    with pytest.raises(Deadlock, match="main"):
        run(main)


def test_a_task_that_is_left_fails_the_run() -> None:
    async def main(_: VirtualLoop) -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(1), name="forgotten")
        await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="forgotten"):
        run(main)


def test_a_jump_fires_each_timer_once_afterwards() -> None:
    ticks: list[float] = []

    async def ticking() -> None:
        while True:
            await asyncio.sleep(1)
            ticks.append(time.monotonic())

    async def main(loop: VirtualLoop) -> None:
        task = asyncio.ensure_future(ticking())
        await asyncio.sleep(1.5)
        loop.jump(100)
        await asyncio.sleep(0.6)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main)
    assert ticks == [1.0, 101.5]


def test_what_blocks_is_done_in_the_loop() -> None:
    async def main(_: VirtualLoop) -> int:
        return await asyncio.to_thread(lambda: 7)

    assert run(main) == 7

"""step_poll.py: many who wait for the workers cost the engine as few steps as one."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from cwm_connector.control.step_poll import StepPoll


class Counted(Future[int]):
    """A future that counts the callbacks it was given."""

    callbacks = 0

    def add_done_callback(self, fn: Callable[[Future[int]], Any]) -> None:
        self.callbacks += 1
        super().add_done_callback(fn)


class Engine:
    """Counts the steps that it is asked for, and completes the futures with the last of them."""

    def __init__(self, futures: list[Counted], steps: int) -> None:
        self.steps = 0
        self._futures = futures
        self._last = steps

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._last:
            for future in self._futures:
                future.set_result(1)


@pytest.mark.parametrize("waiters", [1, 50])
async def test_all_who_wait_share_one_chain_of_steps_and_get_one_callback_each(waiters: int) -> None:
    futures = [Counted() for _ in range(waiters)]
    engine = Engine(futures, 6)
    poll = StepPoll(engine.step)
    await asyncio.gather(*(poll.until_done(future, 0.002) for future in futures))
    assert engine.steps == 6
    assert {future.callbacks for future in futures} == {1}


async def test_nobody_asks_for_steps_once_nobody_waits() -> None:
    future = Counted()
    engine = Engine([future], 3)
    poll = StepPoll(engine.step)
    waiting = asyncio.create_task(poll.until_done(Counted(), 0.001))
    await poll.until_done(future, 0.001)
    waiting.cancel()
    await asyncio.wait([waiting])
    steps = engine.steps
    await asyncio.sleep(0.02)
    assert engine.steps <= steps + 1


async def test_one_who_joins_is_not_kept_by_the_patience_of_the_others() -> None:
    engine = Engine([], 0)
    poll = StepPoll(engine.step)
    patient = asyncio.create_task(poll.until_done(Counted(), 60.0))
    await asyncio.sleep(0.3)  # the next step is at least a tenth of a second away
    steps, quick = engine.steps, Counted()
    engine_of_quick = asyncio.create_task(poll.until_done(quick, 0.001))
    await asyncio.sleep(0.05)
    assert engine.steps >= steps + 3
    quick.set_result(1)
    await engine_of_quick
    patient.cancel()


async def test_a_wait_ends_as_soon_as_another_thread_has_completed_the_future() -> None:
    future = Counted()
    timer = threading.Timer(0.02, future.set_result, [1])
    timer.start()
    async with asyncio.timeout(30):
        await StepPoll(lambda: None).until_done(future, 60.0)
    timer.join()


async def test_a_future_that_is_done_is_not_waited_for() -> None:
    future = Counted()
    future.set_result(1)
    engine = Engine([], 0)
    await StepPoll(engine.step).until_done(future, 60.0)
    assert engine.steps == 0

"""async_helpers.py: waiting for what another thread completes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import repeat
from typing import Any

from cwm_connector.control.async_helpers import until_done


class Counted(Future[int]):
    """A future that counts the callbacks it was given."""

    callbacks = 0

    def add_done_callback(self, fn: Callable[[Future[int]], Any]) -> None:
        self.callbacks += 1
        super().add_done_callback(fn)


async def test_a_long_wait_adds_one_callback() -> None:
    future = Counted()
    turns = 0
    async for _ in until_done(future, repeat(0.001)):
        turns += 1
        if turns == 20:
            future.set_result(1)
    assert (turns, future.callbacks) == (20, 1)


async def test_a_wait_ends_as_soon_as_another_thread_has_completed_the_future() -> None:
    future = Counted()
    timer = threading.Timer(0.02, future.set_result, [1])
    timer.start()
    turns = [turn async for turn in until_done(future, repeat(60.0))]
    timer.join()
    assert len(turns) == 1 and future.result() == 1


async def test_a_future_that_is_done_is_not_waited_for() -> None:
    future = Counted()
    future.set_result(1)
    assert [turn async for turn in until_done(future, repeat(60.0))] == []


async def test_a_wait_ends_when_no_time_is_left() -> None:
    assert len([turn async for turn in until_done(Counted(), [0.001, 0.002])]) == 2

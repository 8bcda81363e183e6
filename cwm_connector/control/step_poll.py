"""Ask for engine steps while anybody waits for the workers, in one chain for all who wait.

A worker's report comes with the next step of the engine, and an idle engine makes none by itself. The end of a job is
pushed: the step that brings its last report wakes the waiter once. What has to be repeated is only the request for a
step. However many wait, there is one request at a time, as often as the most impatient of them wants it.

Control thread. Nothing here blocks its event loop.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

FIRST_STEP_S: Final = 0.001
"""Between the first two engine steps of a wait. Each further time is twice as long as the one before, because a job
whose chunks are in memory takes a millisecond."""


@dataclass(slots=True, eq=False)
class _Wait:
    most_s: float
    next_s: float = FIRST_STEP_S


class StepPoll:
    """The one chain of requests for steps."""

    def __init__(self, request_step: Callable[[], None]) -> None:
        self._request_step = request_step
        self._waits: list[_Wait] = []
        self._joined = asyncio.Event()
        self._chain: asyncio.Task[None] | None = None

    async def until_done(self, future: "Future[Any]", most_s: float) -> None:
        """Wait until a worker's report has completed the future, with at most `most_s` seconds between two steps."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        if future.done():
            return
        wait = _Wait(most_s)
        self._waits.append(wait)
        self._joined.set()
        if self._chain is None or self._chain.done():
            self._chain = asyncio.create_task(self._request_steps())
        try:
            await done.wait()
        finally:
            self._waits.remove(wait)

    async def _request_steps(self) -> None:
        while self._waits:
            self._request_step()
            self._joined.clear()
            shortest = min(wait.next_s for wait in self._waits)
            for wait in self._waits:
                wait.next_s = min(2 * wait.next_s, wait.most_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(shortest):
                    await self._joined.wait()

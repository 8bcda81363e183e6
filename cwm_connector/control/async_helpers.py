"""Helpers of the control thread's event loop: wait for other threads, finish what was begun, run periodically."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from typing import NoReturn, TypeVar

from cwm_connector.core.errors import CWMError

logger = logging.getLogger(__name__)
T = TypeVar("T")


async def wait_done(future: "Future[T]", limit_s: float) -> bool:
    """Return True once the future is done, False after `limit_s`. A cancelled wait does not cancel the future."""
    async for _ in until_done(future, (limit_s,)):
        pass
    return future.done()


async def until_done(future: "Future[T]", waits_s: Iterable[float]) -> AsyncIterator[None]:
    """Yield before each wait, until the future is done or no wait is left. Adds one callback to it in all."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    for wait_s in waits_s:
        if future.done():
            return
        yield
        try:
            async with asyncio.timeout(wait_s):
                await done.wait()
        except TimeoutError:
            pass


def call_on_loop(function: Callable[[T], None]) -> Callable[[T], None]:
    """Return `function` wrapped so that any thread may call it. It runs on this event loop."""
    loop = asyncio.get_running_loop()

    def forward(value: T) -> None:
        loop.call_soon_threadsafe(function, value)

    return forward


async def finish_even_if_cancelled(work: Awaitable[T]) -> T:
    """Await `work` and return its result, even if the caller is cancelled meanwhile. The cancellation is dropped."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
    return task.result()


async def run_periodically(
    step: Callable[[], Awaitable[None]], every_s: float, what: str, *, first_s: float | None = None
) -> NoReturn:
    """Call `step` every `every_s` seconds until cancelled. A failure is logged with `what` and tried again.

    The first call comes after `first_s`, or after `every_s` like the others.
    """
    wait_s = every_s if first_s is None else first_s
    while True:
        await asyncio.sleep(wait_s)
        wait_s = every_s
        try:
            await step()
        except CWMError as problem:
            logger.warning("%s: %s", what, problem)
        except Exception:
            logger.exception("%s failed; trying again", what)

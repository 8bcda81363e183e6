"""The control thread: an event loop on a thread of its own, which serves clients while the engine computes."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)
_STOP_LIMIT_S: Final = 10.0


class ControlThread:
    """An event loop on a thread. Create, start and stop it from one other thread."""

    def __init__(self) -> None:
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="cwm-control", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until its loop runs. Raises: what kept it from running."""
        self._thread.start()
        self._ready.result()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run `work` on the loop and return its future. Any thread but the loop's own may call it."""
        return asyncio.run_coroutine_threadsafe(work, self._ready.result())

    def stop(self) -> None:
        """Cancel everything on the loop, servers included, and wait for it for at most 10 s."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):  # the loop has just closed
            self._ready.result().call_soon_threadsafe(self._stopped.set)
        self._thread.join(_STOP_LIMIT_S)
        if self._thread.is_alive():
            logger.warning("the control thread did not end within %g s", _STOP_LIMIT_S)

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._until_stopped())
        except BaseException as problem:
            if self._ready.done():
                raise
            self._ready.set_exception(problem)

    async def _until_stopped(self) -> None:
        self._ready.set_result(asyncio.get_running_loop())
        await self._stopped.wait()

"""One call of a client: the running operation, its progress and its one answer.

Control thread. Nothing here blocks its event loop.
"""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Protocol

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Args, Op
from cwm_connector.protocol.results import Answer
from cwm_connector.protocol.wire import Failure, FromEngine, Progress, Result

logger = logging.getLogger(__name__)

ProgressSink = Callable[[int, int, str], None]
"""(done, total, text), called on the control thread. `total` is 0 if it is not known."""


class CallHandler(Protocol):
    """Carries out operations for clients."""

    async def call(self, op: Op, args: Args, progress: ProgressSink) -> Answer:
        """Carry out one operation and return the contract's fields.

        Raises: CWMError. Any other exception is answered with `Code.INTERNAL`.
        A call that is given up gets `asyncio.CancelledError`. It may still finish what must not stop half-way and
        return. The client then gets that result.
        """


class ProgressFlow:
    """Sends a call's progress: the first at once, the newest after each interval, and the last before the answer."""

    def __init__(self, call_id: int, interval_s: float, send: Callable[[FromEngine], Awaitable[None]]) -> None:
        self._call_id = call_id
        self._interval_s = interval_s
        self._send = send
        self._newest: Progress | None = None
        self._finished = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def report(self, done: int, total: int, text: str) -> None:
        """Send this progress when the interval allows it. A `ProgressSink`. Ignored after `finish`."""
        if self._finished.is_set():
            return
        self._newest = Progress(self._call_id, done, total, text)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())

    async def finish(self) -> None:
        """Send the last progress. Nothing more is sent after it returns."""
        self._finished.set()
        if self._pump is not None:
            await self._pump

    async def _run(self) -> None:
        while self._newest is not None:
            message, self._newest = self._newest, None
            await self._send(message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._finished.wait()


class RunningCall:
    """One operation from its start to its answer."""

    def __init__(self, call_id: int, op: Op, work: asyncio.Task[Answer], limit_s: float) -> None:
        self._id = call_id
        self._op = op
        self._work = work
        self._limit_s = limit_s
        self._cancel_reason: CWMError | None = None

    def cancel(self, reason: CWMError) -> None:
        """Cancel the operation, once. `reason` is the answer unless the operation ends with a result all the same."""
        if self._cancel_reason is None:
            self._cancel_reason = reason
            self._work.cancel()

    async def answer(self) -> Result | Failure:
        """Wait for the operation and return its answer. Cancel it once its time is over."""
        finished, _ = await asyncio.wait({self._work}, timeout=self._limit_s)
        if not finished:
            self.cancel(
                CWMError(
                    Code.OPERATION_TIMEOUT,
                    f"{self._op.value} was not done after {self._limit_s:g} s and was cancelled; allow it more time",
                )
            )
            await asyncio.wait({self._work})
        try:
            return Result(self._id, self._work.result())
        except asyncio.CancelledError as stray:
            return Failure.of(self._cancel_reason or self._unexpected(stray), self._id)
        except CWMError as problem:
            return Failure.of(problem, self._id)
        except Exception as problem:
            return Failure.of(self._unexpected(problem), self._id)

    def _unexpected(self, problem: BaseException) -> CWMError:
        kind = type(problem).__name__
        # Only the stack is logged: the exception's text may hold arguments such as a prompt or a salt.
        logger.error("%s failed with %s\n%s", self._op.value, kind, "".join(traceback.format_tb(problem.__traceback__)))
        return CWMError(Code.INTERNAL, f"{self._op.value} failed with {kind}; see the engine's log, and report it")

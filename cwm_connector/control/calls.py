"""One call of a client: the running operation, its progress and its one answer.

An operation in `CARRIED_ON` goes on when its client leaves or its time is over. `AcceptedWork` limits how many do.
Control thread. Nothing here blocks its event loop.
"""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import CARRIED_ON, Args, Op
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


class AcceptedWork:
    """The operations that go on without a client. One for each server."""

    def __init__(self, limit: int, limit_s: float) -> None:
        """Take the most operations at once, and the seconds after which one of them is cancelled."""
        self.limit_s: Final = limit_s
        self._limit = limit
        self._carried: set[asyncio.Task[None]] = set()
        self._closed = False

    def adopt(self, op: Op, work: asyncio.Task[Answer]) -> bool:
        """Carry `work` on without its client. Return False if it must be cancelled instead."""
        if op not in CARRIED_ON or len(self._carried) >= self._limit or self._closed:
            return False
        task = asyncio.create_task(self._see_through(op, work))
        self._carried.add(task)
        task.add_done_callback(self._carried.discard)
        return True

    async def close(self) -> None:
        """Cancel what is carried on, wait for it, and adopt nothing more."""
        self._closed = True
        for task in self._carried:
            task.cancel()
        if self._carried:
            await asyncio.wait(self._carried)

    async def _see_through(self, op: Op, work: asyncio.Task[Answer]) -> None:
        try:
            await asyncio.wait({work}, timeout=self.limit_s)
        finally:
            work.cancel()
            await asyncio.wait({work})
        try:
            work.result()
        except asyncio.CancelledError:
            logger.warning("%s was cancelled: its client has left, and it took too long", op.value)
        except CWMError as problem:
            logger.warning("%s, whose client has left, failed with CWM-%d", op.value, problem.code)
        except Exception as problem:
            log_unexpected(op, problem)
        else:
            logger.info("%s, whose client has left, is done", op.value)


class RunningCall:
    """One operation from its start to its answer."""

    def __init__(
        self, call_id: int, op: Op, work: asyncio.Task[Answer], limit_s: float, accepted: AcceptedWork
    ) -> None:
        self._id = call_id
        self._op = op
        self._work = work
        self._limit_s = limit_s
        self._accepted = accepted
        self._cancel_reason: CWMError | None = None
        self._carried_on: asyncio.Future[CWMError] = asyncio.get_running_loop().create_future()
        """Set to the answer when nobody waits for the operation any more and it goes on all the same."""

    def cancel(self, reason: CWMError) -> None:
        """Cancel the operation, once. `reason` is the answer unless the operation ends with a result all the same."""
        if self._cancel_reason is None and not self._carried_on.done():
            self._cancel_reason = reason
            self._work.cancel()

    def give_up(self, why: str) -> None:
        """Stop waiting for the operation. Carry it on if it is one of those that go on, or else cancel it."""
        if self._cancel_reason is None and not self._work.done() and self._accepted.adopt(self._op, self._work):
            goes_on = f"{why}; it goes on, and window_status shows its progress"
            self._carried_on.set_result(CWMError(Code.OPERATION_TIMEOUT, goes_on, carried_on=True))
        else:
            self.cancel(CWMError(Code.OPERATION_TIMEOUT, f"{why} and was cancelled; allow it more time"))

    async def answer(self) -> Result | Failure:
        """Wait for the operation and return its answer. Give it up once its time is over."""
        ends: set[asyncio.Future[Any]] = {self._work, self._carried_on}
        finished, _ = await asyncio.wait(ends, timeout=self._limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not finished:
            self.give_up(f"{self._op.value} was not done after {self._limit_s:g} s")
        if not self._carried_on.done():
            await asyncio.wait({self._work})
        try:
            if self._carried_on.done():
                raise self._carried_on.result()
            return Result(self._id, self._work.result())
        except asyncio.CancelledError as stray:
            return Failure.of(self._cancel_reason or log_unexpected(self._op, stray), self._id)
        except CWMError as problem:
            return Failure.of(problem, self._id)
        except Exception as problem:
            return Failure.of(log_unexpected(self._op, problem), self._id)


def log_unexpected(op: Op, problem: BaseException) -> CWMError:
    """Write the stack of an exception that is a defect, and return what to tell the client."""
    kind = type(problem).__name__
    # Only the stack is logged: the exception's text may hold arguments such as a prompt or a salt.
    logger.error("%s failed with %s\n%s", op.value, kind, "".join(traceback.format_tb(problem.__traceback__)))
    return CWMError(Code.INTERNAL, f"{op.value} failed with {kind}; see the engine's log, and report it")

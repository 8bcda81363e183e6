"""One call of a client: the operation that the engine carries out for it, its progress and its one answer.

Everything here belongs to the control loop.
"""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import Args, Op
from cwm_connector.protocol.wire import Failure, FromEngine, Progress, Result

logger = logging.getLogger(__name__)

ProgressSink = Callable[[int, int, str], None]
"""(done, total, text), called on the control loop; `total` 0 where it can't be known."""


class CallHandler(Protocol):
    """What the engine does for its clients."""

    async def call(self, op: Op, args: Args, progress: ProgressSink) -> dict[str, Any]:
        """The contract's fields. Raises CWMError; anything else is answered with CWM-9001.

        A call that is given up gets `asyncio.CancelledError`. It may still finish what must not stop half-way and
        return: the client is then told of the success.
        """


class ProgressFlow:
    """Sends a call's newest progress at once, the next one an interval later, and the last one before the answer."""

    def __init__(self, call_id: int, interval_s: float, send: Callable[[FromEngine], Awaitable[None]]) -> None:
        self._call_id = call_id
        self._interval_s = interval_s
        self._send = send
        self._newest: Progress | None = None
        self._over = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def report(self, done: int, total: int, text: str) -> None:
        """A `ProgressSink`; what comes after the operation's end is left out."""
        if self._over.is_set():
            return
        self._newest = Progress(self._call_id, done, total, text)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())

    async def finish(self) -> None:
        """Returns when nothing more will be sent."""
        self._over.set()
        if self._pump is not None:
            await self._pump

    async def _run(self) -> None:
        while self._newest is not None:
            message, self._newest = self._newest, None
            await self._send(message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._over.wait()


class RunningCall:
    """One operation from its start to its answer."""

    def __init__(self, call_id: int, op: Op, work: asyncio.Task[dict[str, Any]], limit_s: float) -> None:
        self._id = call_id
        self._op = op
        self._work = work
        self._limit_s = limit_s
        self._given_up: CWMError | None = None

    def cancel(self, reason: CWMError) -> None:
        """Gives the operation up, once; `reason` is the answer unless it comes to its end all the same."""
        if self._given_up is None:
            self._given_up = reason
            self._work.cancel()

    async def answer(self) -> Result | Failure:
        finished, _ = await asyncio.wait({self._work}, timeout=self._limit_s)
        if not finished:
            self.cancel(
                CWMError(
                    Code.OPERATION_TIMEOUT,
                    f"{self._op.value} was not done after {self._limit_s:g} s and was given up; allow it more time",
                )
            )
            await asyncio.wait({self._work})
        try:
            return Result(self._id, self._work.result())
        except asyncio.CancelledError as stray:
            return Failure.of(self._given_up or self._unexpected(stray), self._id)
        except CWMError as problem:
            return Failure.of(problem, self._id)
        except Exception as problem:
            return Failure.of(self._unexpected(problem), self._id)

    def _unexpected(self, problem: BaseException) -> CWMError:
        kind = type(problem).__name__
        # The exception's own text may hold arguments (a prompt, a salt): the stack alone has to do.
        logger.error("%s failed with %s\n%s", self._op.value, kind, "".join(traceback.format_tb(problem.__traceback__)))
        return CWMError(Code.INTERNAL, f"{self._op.value} failed with {kind}; see the engine's log, and report it")

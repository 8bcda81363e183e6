"""One client of the control socket: a hello, then any number of calls side by side.

Control thread. Nothing here blocks its event loop. A client that sends nonsense or does not read its answers loses its
own connection and disturbs nobody else. The engine is only called through `CallHandler`.
"""

import asyncio
import contextlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Final

import msgspec

from cwm_connector.control.calls import AcceptedWork, CallHandler, ProgressFlow, RunningCall
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import parse_arguments
from cwm_connector.protocol.wire import (
    MAX_CALL_S,
    MAX_CALLS,
    MAX_FRAME_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Call,
    Cancel,
    Failure,
    FromClient,
    FromEngine,
    Hello,
    Result,
    Welcome,
    encode,
    read_frame,
)

logger = logging.getLogger(__name__)

_MAX_FAILURE_BYTES: Final = 64 << 10
_MAX_FAILURE_CHARACTERS: Final = 2000
_decoder: Final[msgspec.msgpack.Decoder[FromClient]] = msgspec.msgpack.Decoder(FromClient)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one client."""

    hello_s: float = 5.0
    """From the connection to its Hello, in seconds."""
    unread_s: float = 10.0
    """A client that reads nothing for so many seconds while an answer waits is disconnected."""
    call_s: float = MAX_CALL_S
    calls: int = MAX_CALLS
    connections: int = 32
    """Clients at once. The one that has been idle the longest gives way to a new one, and connects again when it calls.
    Nobody gives way while all of them wait for an answer."""
    carried_on: int = 8
    """Operations of all clients together that go on after their client has left. The next one is cancelled."""
    progress_interval_s: float = 0.05
    """Seconds between two Progress messages of one call."""


class Connection:
    """A client's connection. `serve` returns when it has ended, `wait_for_calls` when its last operation has too."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        operations: CallHandler,
        welcome: Welcome,
        limits: ConnectionLimits,
        accepted: AcceptedWork,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._operations = operations
        self._welcome = welcome
        self._limits = limits
        self._accepted = accepted
        self._writing = asyncio.Lock()
        self._calls: dict[int, RunningCall] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.heard_at = time.monotonic()
        """When the client has last sent a message."""
        # Nothing is buffered beyond the frame that is being written: `drain` returns when the kernel has it all.
        writer.transport.set_write_buffer_limits(high=0)

    async def refuse(self, reason: CWMError) -> None:
        """Send the reason and close the connection."""
        try:
            await self._send(Failure.of(reason))
        finally:
            self._writer.transport.abort()

    @property
    def is_idle(self) -> bool:
        """Return whether the client waits for nothing."""
        return not self._calls

    def give_way(self) -> None:
        """End the connection of an idle client."""
        self._writer.transport.abort()

    async def serve(self) -> None:
        """Serve the client until it leaves or breaks the protocol, then give up its calls."""
        try:
            await self._greet()
            while True:
                await self._handle(await self._receive())
        except CWMError as reason:
            await self._send(Failure.of(reason))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has left
        except asyncio.CancelledError:
            for call in self._calls.values():
                call.cancel(CWMError(Code.OPERATION_TIMEOUT, "cancelled: the engine shuts down"))
            raise
        finally:
            self._writer.transport.abort()
            for call in self._calls.values():
                call.give_up("the client has left")

    async def wait_for_calls(self) -> None:
        """Wait for cancelled operations that finish what must not stop half-way."""
        if self._answering:
            await asyncio.wait(self._answering)

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(self._limits.hello_s):
                hello = await self._receive()
        except TimeoutError:
            raise CWMError(Code.ARGUMENT, f"no hello came within {self._limits.hello_s:g} s; connect again") from None
        if not isinstance(hello, Hello):
            raise CWMError(Code.ARGUMENT, "the first message must be a hello; use a client of this engine's version")
        version = min(hello.max_version, PROTOCOL_MAX)
        if version < max(hello.min_version, PROTOCOL_MIN):
            raise CWMError(
                Code.ARGUMENT,
                f"the engine speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX} and the client {hello.min_version} to "
                f"{hello.max_version}; install the same version of Context Window Manager on both sides",
            )
        await self._send(msgspec.structs.replace(self._welcome, version=version))

    async def _receive(self) -> FromClient:
        """Return the client's next message. Raises: `Code.ARGUMENT` for anything else, which ends the connection."""
        body = await read_frame(self._reader)
        self.heard_at = time.monotonic()
        try:
            message: FromClient = _decoder.decode(body)
            return message
        except Exception:  # bytes can also be nested too deeply or not be UTF-8
            raise CWMError(
                Code.ARGUMENT,
                "this is not a message of the control protocol; check which program is connected to the socket",
            ) from None

    async def _handle(self, message: FromClient) -> None:
        match message:
            case Hello():
                raise CWMError(Code.ARGUMENT, "a second hello came on this connection; open a new connection for it")
            case Cancel(id=call_id):
                if call := self._calls.get(call_id):
                    call.cancel(CWMError(Code.OPERATION_TIMEOUT, "cancelled by the client; call again to complete it"))
            case Call(id=call_id):
                if call_id in self._calls:
                    raise CWMError(Code.ARGUMENT, f"call {call_id} is still running; give each call its own id")
                try:
                    self._begin(message)
                except CWMError as problem:
                    await self._send(Failure.of(problem, call_id))

    def _begin(self, call: Call) -> None:
        """Start an operation. Raises: `Code.ARGUMENT`, `Code.BUSY`."""
        if len(self._calls) >= self._limits.calls:
            raise CWMError(Code.BUSY, f"{self._limits.calls} calls are in flight already; wait for one of them")
        if call.timeout_s is not None and not call.timeout_s > 0:  # also true of NaN
            raise CWMError(Code.ARGUMENT, f"timeout_s is {call.timeout_s}; give a positive number of seconds")
        op, args = parse_arguments(call.op, call.args)
        flow = ProgressFlow(call.id, self._limits.progress_interval_s, self._send)
        work = asyncio.create_task(self._operations.call(op, args, flow.report))
        limit_s = min(self._limits.call_s, math.inf if call.timeout_s is None else call.timeout_s)
        running = self._calls[call.id] = RunningCall(call.id, op, work, limit_s, self._accepted)
        answering = asyncio.create_task(self._answer(call.id, running, flow))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def _answer(self, call_id: int, call: RunningCall, flow: ProgressFlow) -> None:
        answer = await call.answer()
        await flow.finish()
        await self._send(answer)
        # A call counts until its answer is written, so that a client that does not read can't pile up answers.
        del self._calls[call_id]

    async def _send(self, message: FromEngine) -> None:
        """Send a message. A client that has left or does not read is disconnected, and nothing is raised."""
        async with self._writing:
            if self._writer.is_closing():
                return
            self._writer.write(_frame(message))
            try:
                await self._drain()
            except OSError:
                self._writer.transport.abort()

    async def _drain(self) -> None:
        """Wait until the message is sent. Raises: TimeoutError if the client does not read, OSError if it left."""
        while True:
            left = self._writer.transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(self._limits.unread_s):
                    return await self._writer.drain()
            except TimeoutError:
                if self._writer.transport.get_write_buffer_size() >= left:
                    raise


def _frame(message: FromEngine) -> bytes:
    """Return the message as a frame, or a failure that says why it can't be sent."""
    if isinstance(message, Failure):
        return _failure_frame(message)
    try:
        frame = encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as problem:
        if not isinstance(message, Result):
            raise
        logger.error("an answer can't be encoded: %s", type(problem).__name__)
        return encode(Failure.of(CWMError(Code.INTERNAL, "the answer can't be sent; report it"), message.id))
    if isinstance(message, Result) and len(frame) - 4 > MAX_FRAME_BYTES:
        too_long = f"the answer is over {MAX_FRAME_BYTES} bytes; ask for less at once"
        return encode(Failure.of(CWMError(Code.INTERNAL, too_long), message.id))
    return frame


def _failure_frame(failure: Failure) -> bytes:
    """Return the failure as a frame. A long one is cut, because its text may quote what the client sent."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, RecursionError):
        frame = encode(failure)
        if len(frame) <= _MAX_FAILURE_BYTES:
            return frame
    text = failure.message[:_MAX_FAILURE_CHARACTERS].encode(errors="replace").decode()
    return encode(Failure(failure.id, failure.code, text, failure.retryable))

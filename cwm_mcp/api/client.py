"""The control socket's client: one connection, opened when it is needed and opened again after the engine was away.

The MCP server, the command line and the hooks import it, and all of them must start fast. So it imports msgspec and the
standard library, and nothing else.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.protocol.calls import CARRIED_ON, Args, Op
from cwm_connector.protocol.wire import (
    MAX_CALL_S,
    MAX_CALLS,
    MAX_FRAME_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Call,
    Cancel,
    Failure,
    FromEngine,
    Hello,
    Progress,
    Result,
    Welcome,
    encode,
    read_frame,
)
from cwm_mcp.api.direct.errors import another_users, not_ours, silent, too_late, unreachable

logger = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]

_WELCOME_S: Final = 5.0
_GRACE_S: Final = 5.0
"""Beyond a call's own limit, for the engine to say itself that the time is over."""
_decoder: Final[msgspec.msgpack.Decoder[FromEngine]] = msgspec.msgpack.Decoder(FromEngine)


class ControlClient:
    """One client of the engine at `socket_path`. Belongs to one event loop; calls may overlap.

    More than 64 calls wait for each other: the engine takes no more from one client.
    """

    def __init__(self, socket_path: Path, client_name: str, *, grace_s: float = _GRACE_S) -> None:
        self._path = socket_path
        self._name = client_name
        self._grace_s = grace_s
        self._ids = itertools.count(1)
        self._places = asyncio.Semaphore(MAX_CALLS)
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None

    async def call(
        self, op: Op, args: Args, *, timeout_s: float | None = None, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """Carry out an operation and return its fields. `timeout_s` limits it in the engine, by default to an hour.

        Cancelling the task that waits here cancels the operation. So does the end of its time, unless the operation is
        one of `CARRIED_ON`.
        Raises: the engine's own CWMError, `Code.ENGINE_UNREACHABLE` if no engine answers or it goes away meanwhile,
        `Code.ENGINE_TIMEOUT` if no answer comes within `timeout_s` and a grace, `Code.ARGUMENT` for arguments that
        don't fit into a message, `Code.NOT_ALLOWED` for a socket of another user.
        """
        limit_s = MAX_CALL_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s + self._grace_s) as deadline, self._places:
                call = Call(next(self._ids), op.value, args, timeout_s)
                frame = _call_frame(call)
                connection = await self._connected()
                if not connection.send(frame):
                    # The engine had gone unnoticed; nothing was sent, so that its successor can have the call.
                    connection = await self._connected()
                    connection.send(frame)
                try:
                    return await connection.answer(call, on_progress)
                except asyncio.CancelledError:
                    if not (deadline.expired() and op in CARRIED_ON):
                        connection.cancel(call)
                    raise
        except TimeoutError:
            raise too_late(op.value, limit_s) from None

    async def welcome(self) -> Welcome:
        """Return the engine's greeting. Raises: what `call` raises if no engine can be reached."""
        return (await self._connected()).welcome

    async def aclose(self) -> None:
        """Close the connection. Calls that still wait fail with `Code.ENGINE_UNREACHABLE`."""
        if self._connection is not None:
            await self._connection.aclose()
            self._connection = None

    async def _connected(self) -> "_Connection":
        async with self._connecting:
            if self._connection is None or self._connection.ended:
                self._connection = await _connect(self._path, self._name)
            return self._connection


@dataclass(slots=True)
class _Waiting:
    op: str
    answer: "asyncio.Future[dict[str, Any]]"
    on_progress: OnProgress | None


class _Connection:
    """A connection that was welcomed, and the calls that wait on it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path, welcome: Welcome
    ) -> None:
        self.welcome: Final = welcome
        self._reader = reader
        self._writer = writer
        self._path = path
        self._waiting: dict[int, _Waiting] = {}
        self._listening = asyncio.create_task(self._listen())

    @property
    def ended(self) -> bool:
        return self._listening.done() or self._writer.is_closing()

    def send(self, frame: bytes) -> bool:
        """Send a frame. Return False if the engine turns out to have gone."""
        self._writer.write(frame)
        return not self.ended

    async def answer(self, call: Call, on_progress: OnProgress | None) -> dict[str, Any]:
        """Return the answer to a call that was sent in this iteration of the loop."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = _Waiting(call.op, answer, on_progress)
        try:
            return await answer
        finally:
            self._waiting.pop(call.id, None)

    def cancel(self, call: Call) -> None:
        """Tell the engine, if it is still there, that nobody wants the call any more."""
        if not self.ended:
            self.send(encode(Cancel(call.id)))

    async def aclose(self) -> None:
        self._listening.cancel()
        await asyncio.wait({self._listening})
        self._writer.close()  # a task that was cancelled before it began has not done so
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _listen(self) -> None:
        """Read messages until the engine closes the connection, then fail every waiting call."""
        reason: CWMError | None = None
        try:
            while True:
                self._take(await _read(self._reader, self._path))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the engine is gone
        except CWMError as refusal:
            reason = refusal
        finally:
            self._writer.close()
            for waiting in self._waiting.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(_copy(reason) if reason else self._gone_during(waiting.op))

    def _take(self, message: FromEngine) -> None:
        """Pass a message to the call it belongs to. Raises: CWMError if the engine gave up the whole connection."""
        match message:
            case Failure(id=None):
                raise message.error()
            case Progress(id=call_id):
                if (waiting := self._waiting.get(call_id)) and waiting.on_progress:
                    _show(waiting.on_progress, message)
            case Result(id=call_id, value=value):
                if (waiting := self._waiting.get(call_id)) and not waiting.answer.done():
                    waiting.answer.set_result(value)
            case Failure(id=int(call_id)):
                if (waiting := self._waiting.get(call_id)) and not waiting.answer.done():
                    waiting.answer.set_exception(message.error())

    def _gone_during(self, op: str) -> CWMError:
        return CWMError(
            Code.ENGINE_UNREACHABLE,
            f"the engine at {self._path} went away during {op}; start it again with `cwm serve MODEL`, then check "
            "whether the operation was completed",
            socket=str(self._path),
        )


async def _connect(path: Path, name: str) -> _Connection:
    """Connect and greet.

    Raises: `Code.ENGINE_UNREACHABLE`, `Code.ENGINE_TIMEOUT`, `Code.NOT_ALLOWED`, what the engine refuses a client with.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except PermissionError:
        raise another_users(path) from None
    except OSError as problem:
        raise unreachable(path, problem.strerror or str(problem)) from None
    try:
        writer.write(encode(Hello(PROTOCOL_MIN, PROTOCOL_MAX, name)))
        answer = await _first_answer(reader, path)
        if isinstance(answer, Failure):
            raise answer.error()
        if not isinstance(answer, Welcome):
            raise not_ours(path)
        return _Connection(reader, writer, path, answer)
    except BaseException:
        writer.close()
        raise


async def _first_answer(reader: asyncio.StreamReader, path: Path) -> FromEngine:
    try:
        async with asyncio.timeout(_WELCOME_S):
            return await _read(reader, path)
    except TimeoutError:
        raise silent(path) from None
    except (asyncio.IncompleteReadError, OSError):
        raise unreachable(path, "it closed the connection") from None


async def _read(reader: asyncio.StreamReader, path: Path) -> FromEngine:
    """Return the next message.

    Raises: asyncio.IncompleteReadError and OSError if the engine has gone, `Code.ENGINE_UNREACHABLE` for anything
    that is not a message.
    """
    try:
        message: FromEngine = _decoder.decode(await read_frame(reader))
    except (asyncio.IncompleteReadError, OSError):
        raise
    except Exception:  # bytes can also be too deeply nested, or no UTF-8
        raise not_ours(path) from None
    return message


def _call_frame(call: Call) -> bytes:
    """Return the call as a frame. Raises: `Code.ARGUMENT` if it does not fit into one."""
    try:
        frame = encode(call)
    except (TypeError, ValueError, OverflowError) as problem:
        raise CWMError(
            Code.ARGUMENT, f"{call.op}: an argument can't be sent ({type(problem).__name__}); correct it and call again"
        ) from None
    if len(frame) - 4 > MAX_FRAME_BYTES:
        raise CWMError(Code.ARGUMENT, f"{call.op}: the arguments are over {MAX_FRAME_BYTES} bytes; shorten them")
    return frame


def _show(on_progress: OnProgress, message: Progress) -> None:
    """Show progress. An error there must not end this call or others."""
    try:
        on_progress(message)
    except Exception:
        logger.exception("progress could not be shown")


def _copy(problem: CWMError) -> CWMError:
    """Return a copy for one waiting call, because an exception carries the traceback of where it was raised."""
    return CWMError(problem.code, problem.message, **problem.context)

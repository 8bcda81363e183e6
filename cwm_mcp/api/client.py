"""The control socket's client: one connection, made when it is needed and made anew when the engine came back.

It is imported by the MCP server, the command line and the hooks, all of which must start at once: msgspec and the
standard library, nothing else.
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
from cwm_connector.protocol.calls import Args, Op
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
        """The operation's result. `timeout_s` bounds it in the engine, by default an hour.

        Cancelling the task that waits here cancels the operation.
        Raises: the engine's own CWMError; 5001 if no engine answers or it goes away meanwhile; 6001 if it owes the
        answer for longer than `timeout_s` and a grace; 1003 for arguments that don't fit into a message; 8001 for a
        socket of another user.
        """
        limit_s = MAX_CALL_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s + self._grace_s), self._places:
                call = Call(next(self._ids), op.value, args, timeout_s)
                frame = _call_frame(call)
                connection = await self._connected()
                if not connection.send(frame):
                    # The engine had gone unnoticed; nothing was sent, so that its successor can have the call.
                    connection = await self._connected()
                    connection.send(frame)
                return await connection.answer(call, on_progress)
        except TimeoutError:
            raise CWMError(
                Code.ENGINE_TIMEOUT,
                f"the engine gave no answer to {op.value} within {limit_s:g} s; try again or see whether it runs",
            ) from None

    async def welcome(self) -> Welcome:
        """Who answers at the socket. Raises: what `call` raises where no engine can be reached."""
        return (await self._connected()).welcome

    async def aclose(self) -> None:
        """Ends the connection; calls that still wait fail with CWM-5001."""
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
        """False if the engine turns out to have gone."""
        self._writer.write(frame)
        return not self.ended

    async def answer(self, call: Call, on_progress: OnProgress | None) -> dict[str, Any]:
        """What the engine says to a call that was just sent, on this turn of the loop."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = _Waiting(call.op, answer, on_progress)
        try:
            return await answer
        except asyncio.CancelledError:
            # The caller's own task was cancelled, or its time is over.
            if not self.ended:
                self.send(encode(Cancel(call.id)))
            raise
        finally:
            self._waiting.pop(call.id, None)

    async def aclose(self) -> None:
        self._listening.cancel()
        await asyncio.wait({self._listening})
        self._writer.close()  # a task that was cancelled before it began has not done so
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _listen(self) -> None:
        """Until the engine ends the connection; then every waiting call fails."""
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
        """Raises: CWMError where the engine gave the whole connection up."""
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
            f"the engine at {self._path} went away during {op}; start it again with `cwm serve MODEL`, then look "
            "whether it was still done",
            socket=str(self._path),
        )


async def _connect(path: Path, name: str) -> _Connection:
    """Raises: CWM-5001, 6001, 8001, what the engine refuses a client with."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except PermissionError:
        raise CWMError(
            Code.NOT_ALLOWED, f"the engine's socket {path} belongs to another user; call as the user that runs it"
        ) from None
    except OSError as problem:
        raise _unreachable(path, problem.strerror or str(problem)) from None
    try:
        writer.write(encode(Hello(PROTOCOL_MIN, PROTOCOL_MAX, name)))
        answer = await _first_answer(reader, path)
        if isinstance(answer, Failure):
            raise answer.error()
        if not isinstance(answer, Welcome):
            raise _not_ours(path)
        return _Connection(reader, writer, path, answer)
    except BaseException:
        writer.close()
        raise


async def _first_answer(reader: asyncio.StreamReader, path: Path) -> FromEngine:
    try:
        async with asyncio.timeout(_WELCOME_S):
            return await _read(reader, path)
    except TimeoutError:
        raise CWMError(
            Code.ENGINE_TIMEOUT, f"the engine at {path} accepts clients but does not answer; see whether it still runs"
        ) from None
    except (asyncio.IncompleteReadError, OSError):
        raise _unreachable(path, "it closed the connection") from None


async def _read(reader: asyncio.StreamReader, path: Path) -> FromEngine:
    """Raises: asyncio.IncompleteReadError and OSError when the engine has gone; CWM-5001 for what is no message."""
    try:
        message: FromEngine = _decoder.decode(await read_frame(reader))
    except (asyncio.IncompleteReadError, OSError):
        raise
    except Exception:  # bytes can also be too deeply nested, or no UTF-8
        raise _not_ours(path) from None
    return message


def _call_frame(call: Call) -> bytes:
    """Raises: CWM-1003."""
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
    """A fault in showing progress must not end the call, nor its neighbours."""
    try:
        on_progress(message)
    except Exception:
        logger.exception("progress could not be shown")


def _unreachable(path: Path, reason: str) -> CWMError:
    return CWMError(
        Code.ENGINE_UNREACHABLE,
        f"the engine is not reachable at {path} ({reason}); start it with `cwm serve MODEL`, or check CWM_SOCKET",
        socket=str(path),
    )


def _not_ours(path: Path) -> CWMError:
    return CWMError(
        Code.ENGINE_UNREACHABLE,
        f"what answers at {path} does not speak the control protocol; check CWM_SOCKET, or install the same version of "
        "Context Window Manager on both sides",
        socket=str(path),
    )


def _copy(problem: CWMError) -> CWMError:
    """Each waiting call raises its own: an exception carries the traceback of whoever raised it."""
    return CWMError(problem.code, problem.message, **problem.context)

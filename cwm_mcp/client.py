"""The control socket's client: one connection, made when it is needed and made anew when the engine came back."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cwm_connector.protocol import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Args,
    Call,
    Cancel,
    Code,
    CWMError,
    Failure,
    FromClient,
    FromEngine,
    Hello,
    Op,
    Progress,
    Result,
    Welcome,
    encode,
    read_frame,
)

OnProgress = Callable[[Progress], None]

CONNECT_LIMIT_S: Final = 5.0
GRACE_S: Final = 2.0
"""Beyond a call's own limit, for the engine to say itself that the time is over."""


@dataclass(slots=True)
class _Waiting:
    answer: "asyncio.Future[dict[str, Any]]"
    on_progress: OnProgress | None


class _Link:
    """A connection that said hello, and the calls that wait on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: CWMError) -> None:
        self._reader = reader
        self._writer = writer
        self._gone = gone
        self._waiting: dict[int, _Waiting] = {}
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._listening = asyncio.create_task(self._listen())

    @property
    def alive(self) -> bool:
        return not self._listening.done()

    def begin(self, call: Call, on_progress: OnProgress | None) -> "asyncio.Future[dict[str, Any]]":
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = _Waiting(answer, on_progress)
        self.send(call)
        return answer

    def forget(self, call_id: int) -> None:
        """Nobody waits any more: the engine may stop the call."""
        if self._waiting.pop(call_id, None) is not None and self.alive:
            self.send(Cancel(call_id))

    def send(self, message: FromClient) -> None:
        self._writer.write(encode(message))

    async def aclose(self) -> None:
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening

    async def _listen(self) -> None:
        problem = self._gone
        try:
            while True:
                self._take(self._decoder.decode(await read_frame(self._reader)))
        except CWMError as refused:
            problem = refused
        except (OSError, EOFError, msgspec.DecodeError):
            pass  # the engine is gone, or is none of ours
        finally:
            self._writer.close()
            for waiting in self._waiting.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(problem)
            self._waiting.clear()

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Failure) and message.id is None:
            raise message.error()
        if isinstance(message, Progress):
            waiting = self._waiting.get(message.id)
            if waiting is not None and waiting.on_progress is not None:
                waiting.on_progress(message)
        elif isinstance(message, Result | Failure) and message.id is not None:
            done = self._waiting.pop(message.id, None)
            if done is None or done.answer.done():
                return
            if isinstance(message, Result):
                done.answer.set_result(message.value)
            else:
                done.answer.set_exception(message.error())


class EngineClient:
    """Belongs to one event loop; calls may overlap."""

    def __init__(self, socket_path: Path, client_name: str) -> None:
        self._path = socket_path
        self._name = client_name
        self._ids = itertools.count(1)
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    async def call(
        self, op: Op, args: Args, *, timeout_s: float | None = None, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """The operation's result. Cancelling this call cancels it in the engine.

        Raises: the engine's own CWMError; 5001 where no engine answers or it went away meanwhile; 6001 where it gave
        no answer within `timeout_s` and a grace.
        """
        link = await self._connected()
        call = Call(next(self._ids), op.value, args, timeout_s)
        answer = link.begin(call, on_progress)
        try:
            async with asyncio.timeout(None if timeout_s is None else timeout_s + GRACE_S):
                return await answer
        except TimeoutError:
            raise CWMError(
                Code.ENGINE_TIMEOUT, f"the engine gave no answer to {op.value} in {timeout_s:g} s; try again"
            ) from None
        finally:
            link.forget(call.id)

    async def aclose(self) -> None:
        if self._link is not None:
            await self._link.aclose()
            self._link = None

    async def _connected(self) -> _Link:
        async with self._connecting:
            if self._link is None or not self._link.alive:
                self._link = await self._connect()
            return self._link

    async def _connect(self) -> _Link:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                reader, writer = await asyncio.open_unix_connection(str(self._path))
                try:
                    writer.write(encode(Hello(PROTOCOL_MIN, PROTOCOL_MAX, self._name)))
                    welcome = msgspec.msgpack.decode(await read_frame(reader), type=FromEngine)
                    if isinstance(welcome, Failure):
                        raise welcome.error()
                    if not isinstance(welcome, Welcome):
                        raise self._unreachable()
                except BaseException:
                    writer.close()
                    raise
        except (OSError, EOFError, TimeoutError, msgspec.DecodeError):
            raise self._unreachable() from None
        return _Link(reader, writer, self._unreachable())

    def _unreachable(self) -> CWMError:
        return CWMError(
            Code.ENGINE_UNREACHABLE,
            f"no engine answers at {self._path}; start it with `cwm serve MODEL`, or check CWM_HOME and CWM_SOCKET",
            socket=str(self._path),
        )


def call_once(
    socket_path: Path, op: Op, args: Args, *, timeout_s: float | None = None, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """One call from a program without an event loop."""

    async def run() -> dict[str, Any]:
        client = EngineClient(socket_path, "cwm")
        try:
            return await client.call(op, args, timeout_s=timeout_s, on_progress=on_progress)
        finally:
            await client.aclose()

    return asyncio.run(run())

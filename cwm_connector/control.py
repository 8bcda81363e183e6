"""The control socket's server: who may speak, in what form, and for how long.

One event loop in a thread of its own inside the engine process (`ControlThread`); operations run on it and hand what
belongs elsewhere to the engine and catalog threads. A client that sends garbage, is slow or goes away loses its own
connection and nothing else. Access is the file system's (folder 0700, socket 0600) and the kernel's word on the peer's
uid; there is no other secret.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from cwm_connector.protocol import (
    MAX_CALL_S,
    MAX_CALLS,
    MAX_FRAME_BYTES,
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
    parse_arguments,
    read_frame,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
ProgressSink = Callable[[int, int, str], None]
"""(done, total, text); total 0 where it can't be known. From the event loop's thread only."""

HELLO_LIMIT_S: Final = 5.0
WRITE_LIMIT_S: Final = 10.0
"""A client that does not read for so long is dropped."""
PROGRESS_INTERVAL_S: Final = 0.05
MAX_CONNECTIONS: Final = 32


class Operations(Protocol):
    """Carries calls out; on the server's event loop."""

    async def call(self, op: Op, args: Args, progress: ProgressSink) -> dict[str, Any]:
        """The contract's fields. Raises CWMError. It is cancelled when its client cancels, disconnects or runs late."""


class StoreLock:
    """Held for an engine's whole life, so that no second engine ever works on the same store."""

    def __init__(self, home: Path) -> None:
        self._path = home / "engine.lock"
        self._file: int | None = None

    def acquire(self) -> None:
        """The kernel releases it when the process ends, however it ends. Raises: CWM-3001 naming the holder."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise CWMError(
                Code.STATE,
                f"another engine (pid {holder}) works on {self._path.parent}; stop it, or give this one a CWM_HOME of "
                "its own",
                holder=holder,
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class ControlThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cwm-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)


class ControlServer:
    """Listens on `socket_path`. The store's lock is held, so a socket that is already there is a dead engine's."""

    def __init__(self, socket_path: Path, operations: Operations, model: str, version: str = "") -> None:
        self._path = socket_path
        self._operations = operations
        self._model = model
        self._version = version
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self) -> None:
        """Raises: CWM-1003 where something that is no socket stands at the path, or it can't be bound."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(self._path.lstat().st_mode):
                    raise CWMError(Code.ARGUMENT, f"{self._path} is no socket; set CWM_SOCKET to another path")
                self._path.unlink()
            listener = _bind_private(self._path)
        except OSError as problem:
            raise CWMError(
                Code.ARGUMENT,
                f"the socket {self._path} can't be made ({problem.strerror}); set CWM_SOCKET to another path",
            ) from None
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)

    async def close(self) -> None:
        """Ends every connection and removes the socket."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.end()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self._operations)
        self._connections.add(connection)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                raise CWMError(Code.BUSY, f"more than {MAX_CONNECTIONS} clients are connected; close one and try again")
            _check_peer(writer)
            await connection.serve(Welcome(0, self._version, os.getpid(), self._model))
        except CWMError as problem:
            with contextlib.suppress(OSError, TimeoutError):
                await connection.send(Failure.of(problem))
        except (OSError, EOFError, TimeoutError):
            pass  # the client went away, or never spoke
        finally:
            self._connections.discard(connection)
            connection.end()


class _Connection:
    """One client: its calls, and the order of what is written to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, operations: Operations) -> None:
        self._reader = reader
        self._writer = writer
        self._operations = operations
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._writing = asyncio.Lock()
        self._decoder = msgspec.msgpack.Decoder(FromClient)

    async def serve(self, welcome: Welcome) -> None:
        """Until the client goes. Raises: CWMError for what ends the connection, OSError, EOFError, TimeoutError."""
        async with asyncio.timeout(HELLO_LIMIT_S):
            hello = await self._receive()
        if not isinstance(hello, Hello):
            raise CWMError(Code.ARGUMENT, "the first message must be a hello; update the client")
        version = min(hello.max_version, PROTOCOL_MAX)
        if version < max(hello.min_version, PROTOCOL_MIN):
            raise CWMError(
                Code.ARGUMENT,
                f"this engine speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, the client {hello.min_version} to "
                f"{hello.max_version}; install the same version on both sides",
            )
        await self.send(msgspec.structs.replace(welcome, version=version))
        while True:
            message = await self._receive()
            if isinstance(message, Call):
                await self._begin(message)
            elif isinstance(message, Cancel) and message.id in self._calls:
                self._calls[message.id].cancel()

    def end(self) -> None:
        for task in self._calls.values():
            task.cancel()
        self._writer.close()

    async def send(self, message: FromEngine) -> None:
        """Raises: TimeoutError if the client does not read."""
        async with self._writing, asyncio.timeout(WRITE_LIMIT_S):
            self._writer.write(encode(message))
            await self._writer.drain()

    async def _receive(self) -> FromClient:
        try:
            return self._decoder.decode(await read_frame(self._reader))
        except (msgspec.DecodeError, RecursionError):
            raise CWMError(Code.ARGUMENT, "a frame is no message of this protocol; update the client") from None

    async def _begin(self, call: Call) -> None:
        if call.id in self._calls:
            await self.send(Failure.of(CWMError(Code.ARGUMENT, f"call {call.id} is still running; use another id")))
        elif len(self._calls) >= MAX_CALLS:
            busy = CWMError(Code.BUSY, f"{MAX_CALLS} calls are running on this connection; wait for one to end")
            await self.send(Failure.of(busy, call.id))
        else:
            self._calls[call.id] = asyncio.create_task(self._run(call))

    async def _run(self, call: Call) -> None:
        try:
            answer = await self._answer(call)
        finally:
            del self._calls[call.id]
        try:
            await self.send(answer)
        except (OSError, TimeoutError):
            self._writer.transport.abort()  # nobody reads; its other calls end with the connection

    async def _answer(self, call: Call) -> FromEngine:
        reporter = _Reporter(call.id, self.send)
        try:
            operation, args = parse_arguments(call.op, call.args)
            async with asyncio.timeout(min(call.timeout_s or MAX_CALL_S, MAX_CALL_S)):
                result = Result(call.id, await self._operations.call(operation, args, reporter.report))
            if len(encode(result)) > MAX_FRAME_BYTES:
                raise CWMError(Code.INTERNAL, "the answer is too large for one frame; ask for less")
        except CWMError as problem:
            return Failure.of(problem, call.id)
        except TimeoutError:
            late = CWMError(Code.OPERATION_TIMEOUT, f"{call.op} did not end in time and was stopped; try again")
            return Failure.of(late, call.id)
        except asyncio.CancelledError:
            return Failure.of(CWMError(Code.OPERATION_TIMEOUT, f"{call.op} was cancelled by its client"), call.id)
        except Exception as problem:
            logger.exception("%s failed", call.op)
            bug = CWMError(
                Code.INTERNAL, f"{call.op} failed unexpectedly ({type(problem).__name__}); see the engine's log"
            )
            return Failure.of(bug, call.id)
        finally:
            await reporter.flush()
        return result


class _Reporter:
    """Sends a call's progress at most every 50 ms, the last word always before the answer."""

    def __init__(self, call_id: int, send: Callable[[Progress], Coroutine[Any, Any, None]]) -> None:
        self._call_id = call_id
        self._send = send
        self._latest: Progress | None = None
        self._next = 0.0
        self._sending: asyncio.Task[None] | None = None

    def report(self, done: int, total: int, text: str) -> None:
        self._latest = Progress(self._call_id, done, total, text)
        idle = self._sending is None or self._sending.done()
        if idle and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_INTERVAL_S
            self._sending = asyncio.create_task(self._send_latest())

    async def flush(self) -> None:
        if self._sending is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await self._sending
        await self._send_latest()

    async def _send_latest(self) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await self._send(latest)


def _bind_private(path: Path) -> socket.socket:
    """A socket that was never reachable by anybody else: its mode is set before it listens."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _check_peer(writer: asyncio.StreamWriter) -> None:
    """Raises: CWM-8001 unless the kernel says that the peer is this user or root."""
    connection: socket.socket = writer.get_extra_info("socket")
    layout = "3i"  # struct ucred: pid, uid, gid
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(layout))
    uid = struct.unpack(layout, credentials)[1]
    if uid not in (0, os.geteuid()):
        raise CWMError(Code.NOT_ALLOWED, f"this engine belongs to uid {os.geteuid()}; call it as that user")

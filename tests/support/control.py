"""A control server for tests: on a thread with operations that the test chooses, or in a process that it can kill.

`python -m tests.support.control SOCKET` runs the process.
"""

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from cwm_connector.control.calls import ProgressSink
from cwm_connector.control.connection import ConnectionLimits
from cwm_connector.control.server import ControlServer
from cwm_connector.control.thread import ControlThread
from cwm_connector.core.errors import Code
from cwm_connector.protocol.calls import Args, Op
from cwm_connector.protocol.wire import Call, Cancel, Failure, FromClient, FromEngine, Hello, Result, encode

MODEL: Final = "smollm2"
VERSION: Final = "1.2.3"
PATIENCE_S: Final = 20.0
"""Seconds. Longer than anything here may take, so that a test fails and does not hang."""

Handler = Callable[[Any, ProgressSink], Awaitable[dict[str, Any]]]
_decoder: Final = msgspec.msgpack.Decoder(FromEngine)


class Bench:
    """A `CallHandler` with operations that the test sets. The others return their arguments."""

    def __init__(self) -> None:
        self.handlers: dict[Op, Handler] = {}

    async def call(self, op: Op, args: Args, progress: ProgressSink) -> Any:
        if handler := self.handlers.get(op):
            return await handler(args, progress)
        return {"op": op.value, "args": msgspec.to_builtins(args)}


class Waiting:
    """A handler that waits until it is released or cancelled, and signals both to the test's thread."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self._released = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._go = asyncio.Event()

    async def __call__(self, args: Any, progress: ProgressSink) -> dict[str, Any]:
        self._loop = asyncio.get_running_loop()
        self.started.set()
        try:
            await self._go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"released": True}

    def release(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._go.set)


class RawClient:
    """A client that sends exactly what the test wants, down to the bytes."""

    def __init__(self, path: Path, *, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        if hello:
            self.send(Hello(1, 1, "raw"))
            self.welcome = self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *messages: FromClient) -> None:
        self.send_bytes(b"".join(map(encode, messages)))

    def send_bytes(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def end_of_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def receive(self) -> FromEngine | None:
        """Return the next message. None if the connection has ended."""
        head = self._exactly(4)
        body = None if head is None else self._exactly(int.from_bytes(head, "big"))
        return None if body is None else _decoder.decode(body)

    def receive_all(self) -> list[FromEngine]:
        return list(iter(self.receive, None))

    def ask(self, call: Call | Cancel) -> FromEngine | None:
        self.send(call)
        return self.receive()

    def _exactly(self, length: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < length:
            try:
                part = self.socket.recv(min(length - len(parts), 1 << 20))
            except ConnectionResetError:  # the engine did not read all that was sent
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


class Served:
    """A running server and its socket."""

    def __init__(self, path: Path, bench: Bench, thread: ControlThread) -> None:
        self.path = path
        self.bench = bench
        self.thread = thread


def failed(message: object, code: Code, id: int | None = None) -> Failure:
    """Assert that the message is this failure, and return it."""
    assert isinstance(message, Failure), message
    assert (message.code, message.id) == (code, id), message
    return message


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def assert_serving(path: Path) -> None:
    with RawClient(path) as client:
        assert client.ask(Call(7, "ping")) == Result(7, {"op": "ping", "args": {}})


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder with a short path: a socket's path has at most 107 bytes, and pytest's folders can be longer."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def served(limits: ConnectionLimits | None = None, path: Path | None = None) -> Iterator[Served]:
    """Run a server on a thread of its own, as inside an engine."""
    with short_folder() as folder:
        path = path or folder / "home" / "engine.sock"
        bench, thread = Bench(), ControlThread()
        server = ControlServer(path, bench, MODEL, VERSION, limits or ConnectionLimits())
        thread.start()
        try:
            thread.submit(server.start()).result(PATIENCE_S)
            yield Served(path, bench, thread)
        finally:
            thread.stop()


@contextmanager
def engine_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process of its own, where `session.list` never ends. It is killed at the end."""
    command = [sys.executable, "-m", "tests.support.control", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


async def _main(path: Path) -> None:
    bench = Bench()
    bench.handlers[Op.SESSIONS] = Waiting()
    await ControlServer(path, bench, MODEL, VERSION).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))

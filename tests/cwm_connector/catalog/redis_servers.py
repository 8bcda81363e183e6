"""A real redis-server of a test's own, and a proxy before it that loses replies."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis

BINARY = os.environ.get("CWM_TEST_REDIS_SERVER", "redis-server")
START_S = 10.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """`options` are those of redis.conf; its files lie in `folder`, so a restart has them."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--daemonize", "no", "--loglevel", "warning", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if time.monotonic() > deadline or self._process.poll() is not None:
                        raise
                    time.sleep(0.01)  # the server is not listening yet: nothing else would tell

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=10, protocol=2)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()


@contextmanager
def running(folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options)
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """Passes bytes on both ways; while `swallow` is set to a text, the reply to a request that contains it is lost and
    the connection ends, after the server has executed it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.swallow: bytes | None = None
        self.lost = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), closing(socket.create_connection(("127.0.0.1", self._target))) as server:
            while request := _received(client):
                server.sendall(request)
                reply = _received(server)
                if self.swallow is not None and self.swallow in request:
                    self.swallow = None
                    self.lost.set()
                    return
                if not reply:
                    return
                client.sendall(reply)

    def close(self) -> None:
        self._listener.close()


def _received(source: socket.socket) -> bytes:
    """All that has come: a request or reply of the tests' size comes at once, or within a moment."""
    data = source.recv(1 << 20)
    source.settimeout(0.005)
    try:
        while more := source.recv(1 << 20):
            data += more
    except TimeoutError:
        pass
    finally:
        source.settimeout(None)
    return data

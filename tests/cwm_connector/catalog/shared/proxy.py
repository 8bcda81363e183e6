"""A proxy before a real redis-server that loses replies and keeps requests back, chosen by what they say."""

import socket
import threading
from collections.abc import Callable
from contextlib import closing


class Proxy:
    """Passes bytes on both ways, until it is told to fail; `port` is the server's.

    `lose`: the next request that contains it is executed, its reply is lost and the connection ends.
    `hold`: the next request that contains it is kept back until `release`, which executes it.
    `down`: every connection ends at once; also from the moment on that one of the above has happened, if `then_down`.
    """

    def __init__(self, port: int) -> None:
        self.lose: bytes | None = None
        self.hold: bytes | None = None
        self.then_down = self.down = False
        self.on_hold: Callable[[], None] = lambda: None
        """Runs on the proxy's thread before the client gives up."""
        self._target = port
        self._held: bytes | None = None
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
            while (request := _received(client)) and not self.down:
                if self.hold is not None and self.hold in request:
                    self.hold, self._held, self.down = None, request, self.then_down
                    self.on_hold()
                    _received(client)  # until the client gives up
                    return
                server.sendall(request)
                reply = _received(server)
                if self.lose is not None and self.lose in request:
                    self.lose, self.down = None, self.then_down
                    return
                if not reply:
                    return
                client.sendall(reply)

    def release(self) -> bytes:
        """Executes what was held; the server's reply."""
        assert self._held is not None
        with closing(socket.create_connection(("127.0.0.1", self._target))) as server:
            server.sendall(self._held)
            return _received(server)

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

"""A TCP relay before a real server, for what happens on the way: the server's bytes come slowly, stop, or break off."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Passes bytes on both ways. The knobs act on what the server sends from then on, on all connections together."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._sockets: list[socket.socket] = []
        self._lock = threading.Condition()
        self._left: int | None = None
        self._cut = False
        self._trickle_s: float | None = None
        self._before_trickle = 0
        self.stopped = threading.Event()
        """Set while bytes are held back."""
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_after(self, n_bytes: int) -> None:
        """So many more bytes come, then none until `pass_on`."""
        self._turn(n_bytes, cut=False)

    def cut_after(self, n_bytes: int) -> None:
        """So many more bytes come, then the connection breaks off. New ones are whole."""
        self._turn(n_bytes, cut=True)

    def trickle(self, every_s: float, after: int = 0) -> None:
        """From now on each byte comes by itself, but for the first `after`."""
        with self._lock:
            self._trickle_s, self._before_trickle = every_s, after

    def pass_on(self) -> None:
        """Everything, as it comes."""
        with self._lock:
            self._left, self._cut, self._trickle_s = None, False, None
            self.stopped.clear()
            self._lock.notify_all()

    def refuse(self) -> None:
        """New connections; the old ones go on."""
        _end(self._listener)

    def close(self) -> None:
        self.pass_on()
        for each in [self._listener, *self._sockets]:
            _end(each)

    def _turn(self, n_bytes: int, cut: bool) -> None:
        with self._lock:
            self._left, self._cut = n_bytes, cut

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [client, server]
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        _end(server)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if not self._send(client, memoryview(data)):
                    break
        _end(client)
        _end(server)

    def _send(self, client: socket.socket, data: memoryview) -> bool:
        """False where the connection is to break off."""
        while data:
            with self._lock:
                size = len(data) if self._left is None else min(len(data), self._left)
                if size == 0:
                    if self._cut:
                        self._left, self._cut = None, False
                        return False
                    self.stopped.set()
                    self._lock.wait()
                    continue
                if self._trickle_s is not None:
                    size = min(size, self._before_trickle) or 1
                    if self._before_trickle:
                        self._before_trickle -= size
                    else:
                        self._lock.wait(self._trickle_s)
                if self._left is not None:
                    self._left -= size
            client.sendall(data[:size])
            data = data[size:]
        return True


@contextmanager
def relay(target_port: int) -> Iterator[Relay]:
    made = Relay(target_port)
    try:
        yield made
    finally:
        made.close()


def _end(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()

"""One connection to Redis that moves chunks from and into the caller's memory without a copy on the way.

redis-py does what is a client's business: URL, TLS, users, the protocol. What it does slowly, a large value's way into
memory, is done here by its own parser with one method replaced: docs/redis.md has the figures, and
tests/cwm_connector/redis/test_redis_py_contract.py what is relied on. Every call is bounded by a deadline. After
any failure the connection is dropped, so that a late reply is never taken for the next one's.
"""

import threading
import time
from typing import Any, Final

import redis
from redis._parsers.resp2 import _RESP2Parser
from redis._parsers.socket import SERVER_CLOSED_CONNECTION_ERROR, SocketBuffer
from redis.connection import PythonRespSerializer

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis.connect import new_connection
from cwm_connector.redis.errors import is_timeout, refusal

Command = tuple[str | bytes | memoryview | int, ...]

_READ_BYTES: Final = 65_536
"""Bytes that one system call reads of anything but a chunk."""
_PACKET_BYTES: Final = 6_000
"""Arguments up to this length are joined into one packet, as redis-py does."""


class WrongLength(Exception):
    """A value that does not fit the memory for it, which is untouched."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


class CircuitBreaker:
    """Shared by the connections to one server: after a time-out nobody else waits for one, but fails at once for
    `rest_s`. A server that refuses connections does so at once by itself."""

    def __init__(self, rest_s: float) -> None:
        self._rest_s = rest_s
        self._lock = threading.Lock()
        self._failure: tuple[Code, str] | None = None
        self._until = 0.0

    def check(self) -> None:
        """Raise the failure of the last `rest_s` seconds, if there was one."""
        with self._lock:
            if self._failure is not None and time.monotonic() < self._until:
                raise CWMError(*self._failure)

    def trip(self, failure: CWMError) -> None:
        """Let every call fail with `failure` for `rest_s` seconds."""
        with self._lock:
            self._failure = (failure.code, failure.message)
            self._until = time.monotonic() + self._rest_s


class ChunkConnection:
    """For one thread at a time. It connects when it is first used, and again after any failure."""

    def __init__(self, url: str, breaker: CircuitBreaker, *, connect_timeout_s: float) -> None:
        """Connect to nothing yet. Raises: `Code.ARGUMENT` for a malformed URL."""
        self._breaker = breaker
        self._parser = _Parser(_READ_BYTES)
        self._connection: Any = new_connection(
            url,
            connect_timeout_s=connect_timeout_s,
            timeout_s=connect_timeout_s,  # while it connects; then each call has its own deadline
            parser_class=lambda socket_read_size: self._parser,
            command_packer=PythonRespSerializer(_PACKET_BYTES, _encoded),
        )
        self.run_id = b""
        """Of the server that it is, or was last, connected to: every start of a server makes another."""

    def call(self, *commands: Command, deadline: float, into: memoryview | None = None) -> list[Any]:
        """Send the commands together and return their replies. Connecting does not count towards `deadline`, which is
        a time of `time.monotonic`.

        With `into`, the first value among the replies is read into it and is an empty one in the list.

        Raises: `Code.BACKEND`; `Code.QUOTA` for a server at its memory limit; WrongLength. The commands may have been
        executed then, and `into` half filled.
        """
        self._connect()
        connection = self._connection
        try:
            self._parser.limit(deadline)
            connection.send_packed_command(connection.pack_commands(commands))
            self._parser.fill(into, deadline)
            return [self._reply(deadline) for _ in commands]
        except BaseException as problem:
            connection.disconnect()
            if isinstance(problem, redis.RedisError | OSError):
                raise self._failure(problem) from None
            raise
        finally:
            self._parser.fill(None, deadline)

    def close(self) -> None:
        """Drop the connection. Any thread may call this; a call under way fails then."""
        self._connection.disconnect()

    def _reply(self, deadline: float) -> Any:
        self._parser.limit(deadline)
        reply = self._connection.read_response()
        if isinstance(reply, list):  # a transaction's: its errors come as values
            for part in reply:
                if isinstance(part, Exception):
                    raise part
        return reply

    def _connect(self) -> None:
        """Connect, also where the server has closed the connection since: that does not fail the next call."""
        connection = self._connection
        if connection.is_connected:
            try:
                if not connection.can_read(0):
                    return
            except (redis.RedisError, OSError):
                pass
            connection.disconnect()
        self._breaker.check()
        try:
            connection.connect()
            connection.send_command("INFO", "server")
            about = connection.read_response()
        except (redis.RedisError, OSError, ValueError) as problem:
            connection.disconnect()
            raise self._failure(problem) from None
        self.run_id = next((line[7:] for line in about.splitlines() if line.startswith(b"run_id:")), b"")

    def _failure(self, problem: Exception) -> CWMError:
        failure = refusal(problem)
        if is_timeout(problem):
            self._breaker.trip(failure)  # others need not wait in turn for a server that answers nobody
        return failure


class _Buffer(SocketBuffer):
    """Lets one value go straight from the socket into the memory that waits for it."""

    into: memoryview | None = None
    deadline = 0.0

    def read(self, length: int, *more: Any, **named: Any) -> bytes:
        """Read a value's bytes for redis-py, without its line end."""
        into, self.into = self.into, None
        if into is None:
            return super().read(length, *more, **named)
        if length != into.nbytes:
            raise WrongLength(length)
        done = self._buffer.readinto(into)
        while done < length:
            self._sock.settimeout(_left(self.deadline))
            got = self._sock.recv_into(into[done:])
            if not got:
                raise redis.ConnectionError(SERVER_CLOSED_CONNECTION_ERROR)
            done += got
        return super().read(0)  # the line end


class _Parser(_RESP2Parser):
    _sock: Any
    _buffer: Any

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)  # type: ignore[no-untyped-call]

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._buffer = _Buffer(self._sock, self.socket_read_size, connection.socket_timeout)

    def limit(self, deadline: float) -> None:
        """Let nothing that is sent or received from now on wait beyond the deadline. Raises TimeoutError at it."""
        self._sock.settimeout(_left(deadline))

    def fill(self, into: memoryview | None, deadline: float) -> None:
        """Read the next value into `into`; None ends that."""
        if self._buffer is not None:
            self._buffer.into, self._buffer.deadline = into, deadline


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _encoded(argument: str | bytes | memoryview | int) -> bytes | memoryview:
    return argument if isinstance(argument, bytes | memoryview) else str(argument).encode()

"""One connection to Redis that moves chunks from and into the caller's memory without a copy on the way.

redis-py does what is a client's business: URL, TLS, users, the protocol. What it does slowly, a large value's way into
memory, is done here by its own parser with one method replaced: docs/redis.md has the figures, and
tests/cwm_connector/redis/test_redis_py_contract.py what is relied on. Every question is bounded by a deadline. After
any failure the connection is dropped, so that a late reply is never taken for the next one's.
"""

import threading
import time
from typing import Any, Final

import redis
from redis._parsers.resp2 import _RESP2Parser
from redis._parsers.socket import SERVER_CLOSED_CONNECTION_ERROR, SocketBuffer
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, PythonRespSerializer, parse_url
from redis.retry import Retry

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.redis.errors import SETTING, refusal

Command = tuple[str | bytes | memoryview | int, ...]

_READ_BYTES: Final = 65_536
"""What one system call brings, of everything but a chunk."""
_PACKET_BYTES: Final = 6_000
"""Arguments up to this length are joined into one packet, as redis-py does."""


class WrongLength(Exception):
    """A value that does not fit the memory for it, which is untouched."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


class Breaker:
    """Shared by the pipes to one server: after a time-out nobody else waits for one, but fails at once
    for `rest_s`. A server that refuses does so at once by itself."""

    def __init__(self, rest_s: float) -> None:
        self._rest_s = rest_s
        self._lock = threading.Lock()
        self._failure: tuple[Code, str] | None = None
        self._until = 0.0

    def check(self) -> None:
        """Raises what a connect raised just now."""
        with self._lock:
            if self._failure is not None and time.monotonic() < self._until:
                raise CWMError(*self._failure)

    def trip(self, failure: CWMError) -> None:
        with self._lock:
            self._failure = (failure.code, failure.message)
            self._until = time.monotonic() + self._rest_s


class Pipe:
    """For one thread at a time. It connects when it is first used, and again after any failure."""

    def __init__(self, url: str, breaker: Breaker, *, connect_timeout_s: float) -> None:
        """Connects to nothing yet. Raises: CWM-1003 for a URL that can't be one."""
        self._breaker = breaker
        self._parser = _Parser(_READ_BYTES)
        self._connection: Any = _connection(url, self._parser, connect_timeout_s)
        self.run_id = b""
        """Of the server that it is, or was last, connected to: every start of a server makes another."""

    def ask(self, *commands: Command, deadline: float, into: memoryview | None = None) -> list[Any]:
        """The replies to commands that are sent together; `deadline` as of `time.monotonic`, but for the connecting.

        The first value among the replies goes into `into`, where that is given, and is an empty one in the list.

        Raises: CWM-5002; CWM-4003 for a server at its memory limit; WrongLength. The commands may have been executed
        then, and `into` half filled.
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
                failure = refusal(problem)
                if isinstance(problem, redis.TimeoutError | TimeoutError):
                    self._breaker.trip(failure)  # nor need others wait in turn for a server that answers nobody
                raise failure from None
            raise
        finally:
            self._parser.fill(None, deadline)

    def close(self) -> None:
        """Any thread may; a question under way fails then."""
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
        """Also where the server has closed the connection since: that is no failure of what comes next."""
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
            failure = refusal(problem)
            if isinstance(problem, redis.TimeoutError | TimeoutError):
                self._breaker.trip(failure)
            raise failure from None
        self.run_id = next((line[7:] for line in about.splitlines() if line.startswith(b"run_id:")), b"")


class _Buffer(SocketBuffer):
    """Lets one value go straight from the socket into the memory that waits for it."""

    into: memoryview | None = None
    deadline = 0.0

    def read(self, length: int, *more: Any, **named: Any) -> bytes:
        """redis-py asks for a value's bytes here, its line end left out."""
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
        """Nothing that is sent or received from now on waits beyond the deadline. Raises TimeoutError at it."""
        self._sock.settimeout(_left(deadline))

    def fill(self, into: memoryview | None, deadline: float) -> None:
        if self._buffer is not None:
            self._buffer.into, self._buffer.deadline = into, deadline


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connection(url: str, parser: _Parser, connect_timeout_s: float) -> AbstractConnection:
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        made: type[AbstractConnection] = options.pop("connection_class", Connection)
        for pools_own in ("max_connections", "timeout"):
            options.pop(pools_own, None)
        options |= {
            "protocol": 2,
            "decode_responses": False,
            "parser_class": lambda socket_read_size: parser,
            "command_packer": PythonRespSerializer(_PACKET_BYTES, _encoded),
            "socket_connect_timeout": connect_timeout_s,
            "socket_timeout": connect_timeout_s,  # while it connects; then each question has its own
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "driver_info": None,
        }
        return made(**options)
    except (ValueError, TypeError, redis.RedisError):
        raise CWMError(
            Code.ARGUMENT,
            f"{SETTING} is no Redis URL, or has an option that redis-py does not know; write it as in "
            "redis://user:password@host:6379/0",
        ) from None


def _encoded(argument: str | bytes | memoryview | int) -> bytes | memoryview:
    return argument if isinstance(argument, bytes | memoryview) else str(argument).encode()

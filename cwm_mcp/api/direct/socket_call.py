"""Make one call on the control socket and wait for its answer."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from cwm_connector.protocol.calls import Args, Op
from cwm_connector.protocol.wire import (
    MAX_FRAME_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Call,
    Failure,
    FromClient,
    FromEngine,
    Hello,
    Progress,
    Result,
    Welcome,
    encode,
)
from cwm_mcp.api.direct.errors import another_users, not_ours, silent, too_late, unreachable

_WELCOME_S: Final = 5.0
_GRACE_S: Final = 5.0
"""Beyond the call's own limit, for the engine to say itself that the time is over."""
_decoder: Final[msgspec.msgpack.Decoder[FromEngine]] = msgspec.msgpack.Decoder(FromEngine)


def call(path: Path, client_name: str, op: Op, args: Args, timeout_s: float) -> dict[str, Any]:
    """Carry out an operation and return its fields.

    Raises: the engine's own CWMError, and what `ControlClient.call` raises for an engine that does not answer.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        _connect(connection, path)
        welcome = _exchange(connection, path, Hello(PROTOCOL_MIN, PROTOCOL_MAX, client_name), lambda: silent(path))
        if isinstance(welcome, Failure):
            raise welcome.error()
        if not isinstance(welcome, Welcome):
            raise not_ours(path)
        connection.settimeout(timeout_s + _GRACE_S)
        answer = _exchange(connection, path, Call(1, op.value, args, timeout_s), lambda: too_late(op.value, timeout_s))
        while isinstance(answer, Progress):
            answer = _received(connection, path, lambda: too_late(op.value, timeout_s))
    match answer:
        case Failure():
            raise answer.error()
        case Result(value=dict(value)):
            return value
    raise not_ours(path)


def _connect(connection: socket.socket, path: Path) -> None:
    connection.settimeout(_WELCOME_S)
    try:
        connection.connect(str(path))
    except PermissionError:
        raise another_users(path) from None
    except OSError as problem:
        raise unreachable(path, problem.strerror or str(problem)) from None


def _exchange(connection: socket.socket, path: Path, message: FromClient, late: Callable[[], Exception]) -> FromEngine:
    try:
        connection.sendall(encode(message))
    except OSError:
        raise unreachable(path, "it closed the connection") from None
    return _received(connection, path, late)


def _received(connection: socket.socket, path: Path, late: Callable[[], Exception]) -> FromEngine:
    """Return the next message. Raises: the `late` error where none comes, and those of a socket that is not ours."""
    try:
        length = int.from_bytes(_bytes(connection, 4), "big")
        if length > MAX_FRAME_BYTES:
            raise not_ours(path)
        return _decoder.decode(_bytes(connection, length))
    except TimeoutError:
        raise late() from None
    except OSError:
        raise unreachable(path, "it closed the connection") from None
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise not_ours(path) from None


def _bytes(connection: socket.socket, count: int) -> bytearray:
    """Return that many bytes. Raises: ConnectionError if the engine closes before."""
    received = bytearray()
    while len(received) < count:
        part = connection.recv(min(count - len(received), 1 << 20))
        if not part:
            raise ConnectionError
        received += part
    return received

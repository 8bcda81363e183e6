"""What chunk_connection.py relies on in redis-py beyond its documentation. A failure says that a release changed it.

The tier's own tests would fail as well, or be slow, but not say why.
"""

import inspect
import socket
from importlib.metadata import version
from typing import Any

from redis._parsers.resp2 import _RESP2Parser
from redis._parsers.socket import SocketBuffer
from redis.connection import Connection, PythonRespSerializer, parse_url


def test_it_is_the_series_that_was_read() -> None:
    assert version("redis").split(".")[0] == "8"


def test_a_connection_takes_the_parser_and_the_packer_that_it_is_given() -> None:
    parser, packer = _RESP2Parser(65536), PythonRespSerializer(6000, bytes)
    connection = Connection(parser_class=lambda socket_read_size: parser, command_packer=packer, protocol=2)
    assert connection._get_parser() is parser
    assert connection._command_packer is packer
    assert not connection.is_connected


def test_a_large_value_is_packed_without_a_copy() -> None:
    value = memoryview(bytearray(1 << 20))
    packer = PythonRespSerializer(6000, lambda part: part)
    packed = Connection(command_packer=packer, protocol=2).pack_commands([(b"SET", b"key", value)])
    assert any(part is value for part in packed)


def test_the_parser_asks_its_buffer_for_a_values_bytes_without_the_line_end() -> None:
    asked = []

    class Watched(SocketBuffer):
        def read(self, length: int, *more: object, **named: object) -> bytes:
            asked.append(length)
            return super().read(length, *more, **named)

    near, far = socket.socketpair()
    with near, far:
        parser = _RESP2Parser(65536)
        connection: Any = Connection(protocol=2)
        connection._sock = near
        parser.on_connect(connection)
        parser._buffer = Watched(near, 65536, 1.0)
        far.sendall(b"$5\r\nchunk\r\n$-1\r\n*2\r\n+OK\r\n:3\r\n")
        replies = [parser.read_response() for _ in range(3)]
        connection._sock = None
    assert (replies, asked) == ([b"chunk", None, [b"OK", 3]], [5])


def test_a_reading_of_no_bytes_takes_the_line_end() -> None:
    near, far = socket.socketpair()
    with near, far:
        buffer = SocketBuffer(near, 65536, 1.0)
        far.sendall(b"\r\n+OK\r\n")
        assert buffer.read(0) == b""
        assert buffer.readline() == b"+OK"


def test_a_url_says_what_a_connection_is_made_of() -> None:
    made = parse_url("rediss://cwm:p%40ss@server:6380/3?ssl_ca_certs=/ca.pem")
    kind = made.pop("connection_class")
    assert made == {
        "username": "cwm",
        "password": "p@ss",
        "host": "server",
        "port": 6380,
        "db": 3,
        "ssl_ca_certs": "/ca.pem",
    }
    assert {"ssl_ca_certs", "ssl_cert_reqs", "ssl_keyfile"} <= set(inspect.signature(kind.__init__).parameters)

"""The messages of the control socket, and the frames that carry them.

A frame is a 4-byte big-endian length and that many bytes of msgpack. The client speaks first, with `Hello`. The engine
answers `Welcome`, or `Failure` and closes. After that, calls are multiplexed by their id. For each `Call` the engine
sends any number of `Progress` and then exactly one `Result` or `Failure`. KV bytes never cross this socket.

Both processes and the command line import this module, so it must stay free of torch, vllm and lmcache.
"""

from typing import TYPE_CHECKING, Any, Final

import msgspec

from cwm_connector.core.errors import Code, CWMError

if TYPE_CHECKING:  # the shell asks without an event loop, and its import takes a tenth of a second
    import asyncio

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
MAX_FRAME_BYTES: Final = 16 << 20
"""A longer frame is refused before it is read. 16 MiB hold the ids of about three million tokens."""
MAX_CALL_S: Final = 3600.0
"""The engine's own limit for a call, and what `timeout_s=None` means."""
MAX_CALLS: Final = 64
"""Calls in flight on one connection. The engine answers the next with `Code.BUSY`."""


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """The client's first message: the protocol versions it speaks, and its name."""

    min_version: int
    max_version: int
    client: str = ""


class Call(msgspec.Struct, tag="call", frozen=True):
    """One operation. `timeout_s` limits it in the engine. None leaves it to the engine's own limit."""

    id: int
    op: str
    args: Any = {}
    timeout_s: float | None = None


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Ends a call that is still running. It is then answered with a `Failure`. Unknown ids are ignored."""

    id: int


class Welcome(msgspec.Struct, tag="welcome", frozen=True):
    version: int
    engine_version: str
    pid: int
    model: str


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """The progress of a call. `total` is 0 if it can't be known."""

    id: int
    done: int
    total: int
    text: str = ""


class Result(msgspec.Struct, tag="result", frozen=True):
    """The end of a call. `value` is the operation's struct of results.py, which arrives as a map of its fields."""

    id: int
    value: Any


class Failure(msgspec.Struct, tag="failure", frozen=True):
    """An error. `id` is None if it is not about a call: a refused Hello, or a frame that can't be read."""

    id: int | None
    code: int
    message: str
    retryable: bool
    context: dict[str, Any] = {}

    @classmethod
    def of(cls, error: CWMError, id: int | None = None) -> "Failure":
        return cls(id, int(error.code), error.message, error.retryable, error.context)

    def error(self) -> CWMError:
        """Return the error to raise. A code of a newer engine becomes `Code.INTERNAL`, with its number in the text."""
        try:
            return CWMError(Code(self.code), self.message, **self.context)
        except ValueError:
            return CWMError(Code.INTERNAL, f"CWM-{self.code}: {self.message}", **self.context)


FromClient = Hello | Call | Cancel
FromEngine = Welcome | Progress | Result | Failure
_encoder = msgspec.msgpack.Encoder()


def encode(message: FromClient | FromEngine) -> bytes:
    """Return the message as one frame that begins with its length."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: "asyncio.StreamReader") -> bytes:
    """Return the body of the next frame.

    Raises: asyncio.IncompleteReadError at the end of the stream, `Code.ARGUMENT` for a frame over the limit.
    """
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > MAX_FRAME_BYTES:
        raise CWMError(Code.ARGUMENT, f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return await reader.readexactly(length)

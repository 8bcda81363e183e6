"""The control socket's messages and the error codes: what an engine and its clients agree on.

A frame is a 4-byte big-endian length and that many bytes of msgpack. The client speaks first, with `Hello`; the
engine answers `Welcome` or `Failure` and closes. After that calls are multiplexed by their id: for each `Call` the
engine sends any number of `Progress` and then exactly one `Result` or `Failure`. KV bytes never cross this socket.

This module is imported by both processes and by the command line: it must stay free of torch, vllm and lmcache.
"""

import asyncio
import enum
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
MAX_FRAME_BYTES: Final = 16 << 20
"""A longer frame is refused before it is read; 16 MiB hold the ids of about three million tokens."""
MAX_CALL_S: Final = 3600.0
"""The engine's own limit for a call, and what `timeout_s=None` means."""
MAX_CALLS: Final = 64
"""Calls in flight on one connection; the engine answers the next with CWM-7003."""


class Code(enum.IntEnum):
    """The contract's error codes."""

    SESSION_ID = 1001
    WINDOW_NAME = 1002
    ARGUMENT = 1003
    SESSION_NOT_FOUND = 2001
    WINDOW_NOT_FOUND = 2002
    CHUNK_MISSING = 2003
    STATE = 3001
    WINDOW_EXISTS = 3003
    WRITE_FAILED = 4001
    READ_FAILED = 4002
    QUOTA = 4003
    CORRUPT = 4004
    ENGINE_UNREACHABLE = 5001
    BACKEND = 5002
    PASSPORT = 5003
    ENGINE_TIMEOUT = 6001
    OPERATION_TIMEOUT = 6002
    MEMORY = 7001
    BUSY = 7003
    NOT_ALLOWED = 8001
    INTERNAL = 9001


RETRYABLE: Final = frozenset(
    {
        Code.WRITE_FAILED,
        Code.READ_FAILED,
        Code.ENGINE_UNREACHABLE,
        Code.BACKEND,
        Code.ENGINE_TIMEOUT,
        Code.OPERATION_TIMEOUT,
        Code.BUSY,
    }
)


class CWMError(Exception):
    """A failure that a user can act on: a code of the contract and one sentence that says what to do next."""

    def __init__(self, code: Code, message: str, **context: Any) -> None:
        super().__init__(f"CWM-{int(code)}: {message}")
        self.code = code
        self.message = message
        self.context: dict[str, Any] = context

    @property
    def retryable(self) -> bool:
        return self.code in RETRYABLE


# --- names -----------------------------------------------------------------------------------------------------------

_SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WINDOW_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}")
_TAG = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MAX_TAGS: Final = 32
MAX_DESCRIPTION: Final = 2000


def is_session_id(text: str) -> bool:
    """True if a client's own identifier may serve as a session id."""
    return _SESSION_ID.fullmatch(text) is not None


def check_session_id(text: str) -> str:
    if not is_session_id(text):
        raise CWMError(
            Code.SESSION_ID,
            f"{text!r} is no session id; use 1 to 128 of letters, digits and . _ : -",
            session_id=text,
        )
    return text


def check_window_name(text: str) -> str:
    if not _WINDOW_NAME.fullmatch(text):
        raise CWMError(
            Code.WINDOW_NAME,
            f"{text!r} is no window name; use 1 to 128 of letters, digits and . _ -, not beginning with a dot",
            window_name=text,
        )
    return text


def check_tags(tags: list[str]) -> list[str]:
    """The tags without repetitions, in the order given."""
    unique = list(dict.fromkeys(tags))
    if len(unique) > MAX_TAGS:
        raise CWMError(Code.ARGUMENT, f"{len(unique)} tags are too many; give at most {MAX_TAGS}")
    for tag in unique:
        if not _TAG.fullmatch(tag):
            raise CWMError(Code.ARGUMENT, f"{tag!r} is no tag; use 1 to 64 of letters, digits and . _ : -", tag=tag)
    return unique


def check_description(text: str) -> str:
    if len(text) > MAX_DESCRIPTION:
        raise CWMError(Code.ARGUMENT, f"the description has {len(text)} characters; shorten it to {MAX_DESCRIPTION}")
    return text


# --- the arguments of each operation ---------------------------------------------------------------------------------


class FreezeArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Freeze a session's head (the one last active, unless `head` names another) under a new window name."""

    session_id: str
    window_name: str
    description: str = ""
    tags: list[str] = []
    head: str | None = None


class ThawArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Bind a window to a session and to a fresh cache salt; with `prewarm` its chunks are read and verified now."""

    window_name: str
    new_session_id: str | None = None
    prewarm: bool = True


class CloneArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Give a window a second name. `tags=None` inherits the source's."""

    source_window: str
    target_window: str
    description: str | None = None
    tags: list[str] | None = None


class DeleteArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    window_name: str


class TagArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    window_name: str
    add: list[str] = []
    remove: list[str] = []
    description: str | None = None


class ListArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    tags: list[str] = []
    model: str | None = None
    search: str | None = None
    session_id: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    sort_by: str = "created_at"
    sort_order: str = "desc"
    limit: int = 20
    offset: int = 0


class StatusArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Exactly one of the two names."""

    window_name: str | None = None
    session_id: str | None = None
    include_blocks: bool = False


class SessionsArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    state_filter: str | None = None
    model: str | None = None
    limit: int = 50
    offset: int = 0


class TokensArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    window_name: str


class HealthArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    component: str | None = None


class VerifyArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Read and check every stored copy, from where the last walk was broken off unless `restart`.

    `rate_mb_s`: MiB a second at most, 0 for as fast as it goes.
    """

    repair: bool = False
    restart: bool = False
    rate_mb_s: float = 200.0


class ExportArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Write a window to a file of the engine's machine. `path` is absolute; what is there is kept unless `force`."""

    window_name: str
    path: str
    force: bool = False


class ImportArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Make a window of an exported file, under its own name unless `window_name`; `tags` come to the file's."""

    path: str
    window_name: str | None = None
    tags: list[str] = []


class PolicyArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Change what is given of the auto-freeze policy; `reset` forgets all earlier changes first. See auto/policy.py."""

    enabled: bool | None = None
    idle_timeout_minutes: float | None = None
    token_threshold: int | None = None
    naming_pattern: str | None = None
    keep_last: int | None = None
    tags: list[str] | None = None
    reset: bool = False


class NoArgs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


Args = (
    FreezeArgs
    | ThawArgs
    | CloneArgs
    | DeleteArgs
    | TagArgs
    | ListArgs
    | StatusArgs
    | SessionsArgs
    | TokensArgs
    | HealthArgs
    | VerifyArgs
    | ExportArgs
    | ImportArgs
    | PolicyArgs
    | NoArgs
)


class Op(enum.StrEnum):
    """What a client may call."""

    FREEZE = "window.freeze"
    THAW = "window.thaw"
    CLONE = "window.clone"
    DELETE = "window.delete"
    TAG = "window.tag"
    LIST = "window.list"
    STATUS = "window.status"
    TOKENS = "window.tokens"
    SESSIONS = "session.list"
    STATS = "cache.stats"
    HEALTH = "health"
    METRICS = "metrics"
    POLICY = "auto_freeze.policy"
    COLLECT = "store.collect"
    VERIFY = "store.verify"
    EXPORT = "window.export"
    IMPORT = "window.import"
    PING = "ping"


ARGUMENTS: Final[Mapping[Op, type[Args]]] = {
    Op.FREEZE: FreezeArgs,
    Op.THAW: ThawArgs,
    Op.CLONE: CloneArgs,
    Op.DELETE: DeleteArgs,
    Op.TAG: TagArgs,
    Op.LIST: ListArgs,
    Op.STATUS: StatusArgs,
    Op.TOKENS: TokensArgs,
    Op.SESSIONS: SessionsArgs,
    Op.STATS: NoArgs,
    Op.HEALTH: HealthArgs,
    Op.METRICS: NoArgs,
    Op.POLICY: PolicyArgs,
    Op.COLLECT: NoArgs,
    Op.VERIFY: VerifyArgs,
    Op.EXPORT: ExportArgs,
    Op.IMPORT: ImportArgs,
    Op.PING: NoArgs,
}


def parse_arguments(op: str, raw: object) -> tuple[Op, Args]:
    """The operation and its checked types.

    Raises: CWM-1003 for an operation, argument name or type that is not the protocol's. Names and ranges are checked
    by whoever carries the operation out.
    """
    try:
        known = Op(op)
    except ValueError:
        raise CWMError(Code.ARGUMENT, f"there is no operation {op!r}; update the client or the engine") from None
    try:
        return known, msgspec.convert(raw, ARGUMENTS[known])
    except msgspec.ValidationError as problem:
        raise CWMError(Code.ARGUMENT, f"{known.value}: {problem}; correct the argument and call again") from None


# --- messages --------------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """The client's first message: the protocol versions it speaks, and what it is."""

    min_version: int
    max_version: int
    client: str = ""


class Call(msgspec.Struct, tag="call", frozen=True):
    """One operation. `timeout_s` bounds it in the engine; None leaves it to the engine's own limit."""

    id: int
    op: str
    args: Any = {}
    timeout_s: float | None = None


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Ends a call that is still running; it is then answered with a `Failure`. Unknown ids are ignored."""

    id: int


class Welcome(msgspec.Struct, tag="welcome", frozen=True):
    version: int
    engine_version: str
    pid: int
    model: str


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """How far a call is; `total` 0 where it can't be known."""

    id: int
    done: int
    total: int
    text: str = ""


class Result(msgspec.Struct, tag="result", frozen=True):
    """The contract's fields for the call's tool."""

    id: int
    value: dict[str, Any]


class Failure(msgspec.Struct, tag="failure", frozen=True):
    """`id` is None where no call is concerned: a refused Hello, a frame that can't be read."""

    id: int | None
    code: int
    message: str
    retryable: bool
    context: dict[str, Any] = {}

    @classmethod
    def of(cls, error: CWMError, id: int | None = None) -> "Failure":
        return cls(id, int(error.code), error.message, error.retryable, error.context)

    def error(self) -> CWMError:
        """The failure to raise. A code that only a newer engine knows becomes CWM-9001, with its number in the text."""
        try:
            return CWMError(Code(self.code), self.message, **self.context)
        except ValueError:
            return CWMError(Code.INTERNAL, f"CWM-{self.code}: {self.message}", **self.context)


FromClient = Hello | Call | Cancel
FromEngine = Welcome | Progress | Result | Failure

_encoder = msgspec.msgpack.Encoder()


def encode(message: FromClient | FromEngine) -> bytes:
    """The message as one frame, its length in front."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The body of the next frame.

    Raises: asyncio.IncompleteReadError at the end of the stream, CWM-1003 for a frame over the limit.
    """
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > MAX_FRAME_BYTES:
        raise CWMError(Code.ARGUMENT, f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return await reader.readexactly(length)

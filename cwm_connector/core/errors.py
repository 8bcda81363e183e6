"""The contract's error codes and `CWMError`, the exception that carries them to the user.

Any thread. Nothing here blocks.
"""

import enum
from typing import Any, Final


class Code(enum.IntEnum):
    """The contract's error codes. The user sees `Code.SESSION_ID` as CWM-1001."""

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


_RETRYABLE: Final = frozenset(
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
    """A failure that the user can act on. The message says what failed and what to do next, in one sentence."""

    def __init__(self, code: Code, message: str, **context: Any) -> None:
        """Take the code, the message and any values that a client may want to read from the error."""
        super().__init__(f"CWM-{int(code)}: {message}")
        self.code = code
        self.message = message
        self.context: dict[str, Any] = context

    @property
    def retryable(self) -> bool:
        """Return whether the same call may succeed if it is repeated later."""
        return self.code in _RETRYABLE

"""Explain the error codes, for `cwm help CODE` and docs/errors.md."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from cwm_connector.core.errors import Code, CWMError


class Explained(NamedTuple):
    """An error code in words."""

    what: str
    do: str


CODES: Final[Mapping[Code, Explained]] = {
    Code.SESSION_ID: Explained(
        "The session id is empty or longer than 1,024 bytes.", "Take one that `cwm sessions` lists."
    ),
    Code.WINDOW_NAME: Explained(
        "The name cannot be that of a window.",
        "Use 1 to 128 ASCII letters, digits and `.` `_` `-`, and no dot at the beginning.",
    ),
    Code.ARGUMENT: Explained(
        "An argument, an option or a setting cannot work.", "The message names it and says what is expected."
    ),
    Code.SESSION_NOT_FOUND: Explained(
        "The engine has no session of this id, or no such head.",
        "Look at `cwm sessions`. A client names its session in the header `X-Session-ID`.",
    ),
    Code.WINDOW_NOT_FOUND: Explained(
        "No window has this name.", "Look at `cwm ls`. `cwm undo --list` shows the deleted ones."
    ),
    Code.CHUNK_MISSING: Explained(
        "A chunk of the window is in no tier.",
        "Run `cwm verify --repair`. Tokens without it are computed again.",
    ),
    Code.STATE: Explained(
        "It is too early or too late for this, for instance before a session has its first full block.",
        "The message says what to wait for.",
    ),
    Code.WINDOW_EXISTS: Explained(
        "Another window has this name.", "Choose another name, or delete or rename that window."
    ),
    Code.WRITE_FAILED: Explained("The disk refused a write.", "Run `cwm doctor`, then try again."),
    Code.READ_FAILED: Explained("The disk could not be read.", "Run `cwm doctor`, then try again."),
    Code.QUOTA: Explained(
        "The disk or the disk tier is full.",
        "Delete windows with `cwm rm`, or start the engine with a larger `CWM_DISK_CACHE_GB`.",
    ),
    Code.CORRUPT: Explained(
        "Stored data failed its checksum.", "Run `cwm verify --repair`. For the catalog, restore a backup."
    ),
    Code.ENGINE_UNREACHABLE: Explained(
        "No engine answers on the socket, or vLLM does not answer over HTTP.",
        "Start it with `cwm serve MODEL`, and see `cwm doctor`. `CWM_HOME` must be the engine's.",
    ),
    Code.BACKEND: Explained("Redis does not answer.", "Start it or correct `CWM_REDIS_URL`, then try again."),
    Code.PASSPORT: Explained(
        "The window was made by other weights or another layout of the KV cache.",
        "Start an engine with the model and options that the message names.",
    ),
    Code.ENGINE_TIMEOUT: Explained("The engine did not answer in time.", "Try again, and see `cwm health`."),
    Code.OPERATION_TIMEOUT: Explained("The work did not end in time.", "Try again while the engine has less to do."),
    Code.MEMORY: Explained("There is not enough memory.", "Free some, or set a smaller `CWM_CPU_CACHE_GB`."),
    Code.BUSY: Explained("Something else is using what is needed.", "Try again."),
    Code.NOT_ALLOWED: Explained("This user may not do it.", "Call as the user that runs the engine."),
    Code.INTERNAL: Explained("Something failed that should not.", "Please report it with the engine's log."),
}


def explained(word: str) -> str | None:
    """Return a text about the code in a word such as 4003 or CWM-4003, or None if the word is no number.

    Raises `Code.ARGUMENT` for a number that is no code.
    """
    number = word.upper().removeprefix("CWM-")
    if not number.isdecimal():
        return None
    if int(number) not in {int(code) for code in Code}:
        known = ", ".join(str(int(code)) for code in CODES)
        raise CWMError(Code.ARGUMENT, f"there is no code {number}; the codes are {known}")
    code = Code(int(number))
    again = " The same call may succeed later." if CWMError(code, "").retryable else ""
    return f"CWM-{int(code)}: {CODES[code].what}{again}\n{CODES[code].do}"

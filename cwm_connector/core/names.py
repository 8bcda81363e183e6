"""Check the names that users choose for sessions, windows and tags, and the descriptions of windows.

Clients name their sessions as they like, `alice@example.com` for instance. An identifier becomes a session id so:

- White space at both ends is removed.
- 1 to 128 ASCII letters, digits and . _ : - are a session id as they are.
- Of anything else every other character becomes "-", and the result is cut to 119 characters. Then "-" and the first
  8 hexadecimal digits of the SHA-256 of the identifier's UTF-8 follow, so that two identifiers stay two sessions.
- An empty identifier is none, and neither is one of more than 1,024 bytes.

The same rule makes the names of heads. Names of windows and tags may have letters of any script. They are normalised to
NFC, and refused if they are not legal. `letters.py` says which letters are not.

Pure functions for any thread. Nothing here blocks.
"""

import hashlib
import re
import unicodedata
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.letters import why_not

_SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOT_IN_SESSION_ID = re.compile(r"[^A-Za-z0-9._:-]")
_WINDOW_SIGNS: Final = "._-"
_TAG_SIGNS: Final = "._:-"
_MAX_WINDOW_NAME: Final = 128
_MAX_TAG: Final = 64
_MAX_NAME_BYTES: Final = 240
"""So that a name fits into the name of a file."""
_MAX_IDENTIFIER_BYTES: Final = 1024
_SHOWN: Final = 80
_DIGEST_DIGITS: Final = 8
_MAX_SESSION_ID: Final = 128
MAX_TAGS: Final = 32
"""Tags of one window."""
MAX_DESCRIPTION: Final = 2000
"""Characters of a window's description."""


def is_session_id(text: str) -> bool:
    """Return whether an identifier that a client chose can be used as a session id."""
    return _SESSION_ID.fullmatch(text) is not None


def legal_session_id(text: str) -> str | None:
    """Return the session id that an identifier becomes. None if it is empty or longer than 1,024 bytes."""
    text = text.strip()
    if is_session_id(text):
        return text
    if not text or len(text) > _MAX_IDENTIFIER_BYTES:
        return None
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) > _MAX_IDENTIFIER_BYTES:
        return None
    digest = hashlib.sha256(raw).hexdigest()[:_DIGEST_DIGITS]
    return f"{_NOT_IN_SESSION_ID.sub('-', text)[: _MAX_SESSION_ID - _DIGEST_DIGITS - 1]}-{digest}"


def check_window_name(text: str) -> str:
    """Return the window name in NFC. Raises `Code.WINDOW_NAME` if it has characters that are not allowed."""
    name = unicodedata.normalize("NFC", text)
    reason = "it begins with a dot" if name.startswith(".") else _fault(name, _MAX_WINDOW_NAME, _WINDOW_SIGNS)
    if reason is not None:
        raise CWMError(
            Code.WINDOW_NAME,
            f"{text[:_SHOWN]!a} is not a window name, because {reason}; use 1 to 128 letters, digits and . _ -, "
            "and no dot at the beginning",
            window_name=text,
        )
    return name


def check_tags(tags: list[str]) -> list[str]:
    """Return the tags in NFC without repetitions, in the given order.

    Raises `Code.ARGUMENT` if there are more than `MAX_TAGS` or one has characters that are not allowed.
    """
    unique = list(dict.fromkeys(unicodedata.normalize("NFC", tag) for tag in tags))
    if len(unique) > MAX_TAGS:
        raise CWMError(Code.ARGUMENT, f"{len(unique)} tags are too many; give at most {MAX_TAGS}")
    for tag in unique:
        if (reason := _fault(tag, _MAX_TAG, _TAG_SIGNS)) is not None:
            raise CWMError(
                Code.ARGUMENT,
                f"{tag[:_SHOWN]!a} is not a tag, because {reason}; use 1 to 64 letters, digits and . _ : -",
                tag=tag,
            )
    return unique


def _fault(name: str, most: int, signs: str) -> str | None:
    """Return why the text is no name of at most `most` characters, or None."""
    if not 1 <= len(name) <= most or len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        return f"it has {len(name)} characters" if name else "it is empty"
    return why_not(name, signs)


def check_description(text: str) -> str:
    """Return the description. Raises `Code.ARGUMENT` if it is longer than `MAX_DESCRIPTION`."""
    if len(text) > MAX_DESCRIPTION:
        raise CWMError(Code.ARGUMENT, f"the description has {len(text)} characters; shorten it to {MAX_DESCRIPTION}")
    return text


def name_taken(name: str) -> CWMError:
    """Return the refusal of a window's name that another window has."""
    return CWMError(
        Code.WINDOW_EXISTS,
        f"a window named {name!r} exists; choose another name or delete that window first",
        window_name=name,
    )

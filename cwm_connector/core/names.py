"""Checks of the names that users choose: sessions, windows, tags and descriptions."""

import re
from typing import Final

from cwm_connector.core.errors import Code, CWMError

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


def name_taken(name: str) -> CWMError:
    """Return the refusal of a window's name that another window has."""
    return CWMError(
        Code.WINDOW_EXISTS,
        f"a window named {name!r} exists; choose another name or delete that window first",
        window_name=name,
    )

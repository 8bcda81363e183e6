"""Says who sent a request: its session, its head, and what the client said about it.

The middleware writes this into `X-Session-ID`, the one field that vLLM carries from the HTTP request to the connector.
The engine reads it back:

    SESSION[/HEAD][;kind=side][;opening=1f3a9c2e][;tools=no]

A client may write the same into the header or into `session_id` in the body, and so do users who name a session to a
tool or a command. SESSION and HEAD need not be legal: names.py says what they become. A text with more than one slash,
or with nothing before or behind it, is one identifier.

Pure functions for any thread. Nothing here blocks.
"""

import enum
import re
from dataclasses import dataclass
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import legal_session_id


class RequestKind(enum.StrEnum):
    """The purpose of a request, as far as its fields tell."""

    TURN = "turn"
    """A turn of a conversation, or nothing is known."""
    SIDE = "side"
    """A title, a topic, a suggestion, a quota check: nothing that the user reads as the conversation."""
    COMPACTION = "compaction"
    """A client's request to sum up the conversation. Its answer begins the next one."""


@dataclass(frozen=True, slots=True)
class Hints:
    """The facts that the body of a request tells. Every field has a value for "not known"."""

    kind: RequestKind = RequestKind.TURN
    opening: str | None = None
    """A digest of the tools and the system text, 8 hexadecimal digits. None if there are neither, or no body was read.
    Two requests with one opening belong to one kind of conversation, however their messages differ."""
    has_tools: bool | None = None


NO_HINTS: Final = Hints()


@dataclass(frozen=True, slots=True)
class Speaker:
    """The session that a request belongs to, the head if the client named one, and the client's hints."""

    session_id: str | None
    """None for a client that gives no id."""
    head: str | None = None
    hints: Hints = NO_HINTS


_TOOLS: Final = {True: "yes", False: "no"}
_HINT: Final = re.compile(r"(kind)=(side|compaction)|(opening)=([0-9a-f]{8})|(tools)=(yes|no)")


def parse_speaker(text: str | None) -> Speaker | None:
    """Parse a request's session id. Return None if it says nothing."""
    who, hints = _parse_hints(text or "")
    speaker = _named(who, hints)
    return None if speaker == Speaker(None) else speaker


def format_speaker(speaker: Speaker) -> str:
    """Return the text that `parse_speaker` reads as this speaker. It is empty if nothing is known."""
    hints = speaker.hints
    return "".join(
        (
            speaker.session_id or "",
            f"/{speaker.head}" if speaker.head else "",
            "" if hints.kind is RequestKind.TURN else f";kind={hints.kind}",
            f";opening={hints.opening}" if hints.opening else "",
            "" if hints.has_tools is None else f";tools={_TOOLS[hints.has_tools]}",
        )
    )


def check_session(text: str) -> Speaker:
    """Return the session, and the head if there is one, that a user names as SESSION or SESSION/HEAD.

    Raises `Code.SESSION_ID` if the text is empty or too long.
    """
    speaker = _named(text, NO_HINTS)
    if speaker.session_id is None:
        raise CWMError(
            Code.SESSION_ID,
            f"{text[:80]!r} is not a session id; give at least one character and at most 1,024 bytes",
            session_id=text[:80],
        )
    return speaker


def check_session_id(text: str) -> str:
    """Return the id of the session that a user names. Raises `Code.SESSION_ID` if the text is empty or too long."""
    return check_session(text).session_id or ""


def _named(who: str, hints: Hints) -> Speaker:
    session, slash, head = who.partition("/")
    if slash and session.strip() and head.strip() and "/" not in head:
        session_id = legal_session_id(session)
        return Speaker(session_id, legal_session_id(head) if session_id else None, hints)
    return Speaker(legal_session_id(who), None, hints)


def _parse_hints(text: str) -> tuple[str, Hints]:
    """Return what comes before the hints, and the hints. It looks at the end only, so a long text costs nothing."""
    found: dict[str, str] = {}
    while True:
        rest, semicolon, last = text.rpartition(";")
        match = _HINT.fullmatch(last) if semicolon else None
        name, value = (group for group in match.groups() if group) if match else ("", "")
        if match is None or name in found:
            break
        found[name], text = value, rest
    if not found:
        return text, NO_HINTS
    tools = found.get("tools")
    return text, Hints(
        kind=RequestKind(found.get("kind", RequestKind.TURN)),
        opening=found.get("opening"),
        has_tools=None if tools is None else tools == _TOOLS[True],
    )

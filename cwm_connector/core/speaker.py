"""Says who sent a request: its session, its head, and what the client said about it.

The middleware writes this into `X-Session-ID`, the one field that vLLM carries from the HTTP request to the connector.
The engine reads it back:

    SESSION[/HEAD][;kind=side][;opening=1f3a9c2e][;tools=no]

Pure functions for any thread. Nothing here blocks.
"""

import enum
from dataclasses import dataclass
from typing import Final

from cwm_connector.core.names import is_session_id


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


def parse_speaker(text: str | None) -> Speaker | None:
    """Parse a request's session id. Return None if there is none."""
    session, _, head = (text or "").partition("/")
    if not is_session_id(session) or (head and not is_session_id(head)):
        return None
    return Speaker(session, head or None)

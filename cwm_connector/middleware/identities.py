"""The fields with which clients name their conversations.

To teach CWM another client, add a row to `IDENTITIES`. A row comes first if its field belongs to one client and says
more than others. Fields that a proxy may add for its own purposes come later, and so do those that name a family of
conversations, which the engine tells apart by their content.

These are never an identity: X-Request-ID, X-Client-Request-ID, traceparent, `user`, `safety_identifier`, User-Agent,
keys and connections. They change within a conversation, or are the same in many.

API server, event loop. Nothing here blocks.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from cwm_connector.core.names import legal_session_id
from cwm_connector.core.speaker import Speaker, parse_speaker
from cwm_connector.middleware.body import Body

HEADER: Final = "x-session-id"
"""vLLM's own field, into which the middleware writes."""
CODEX_TURN: Final = "x-codex-turn-metadata"


class Place(enum.Enum):
    """Where a field is in a request."""

    HEADER = enum.auto()
    BODY = enum.auto()


class Form(enum.Enum):
    """How a field writes the id."""

    IDENTIFIER = enum.auto()
    """The whole text is the id."""
    SPEAKER = enum.auto()
    """`SESSION/HEAD`, as speaker.py reads it. Only vLLM's own fields have it."""
    OLD_CLAUDE = enum.auto()
    """`user_HASH_account_UUID_session_UUID`."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One field that names a conversation."""

    client: str
    place: Place
    path: tuple[str, ...]
    """The header's name, or the way through the body's objects. A text on the way is read as JSON."""
    form: Form = Form.IDENTIFIER
    head: str | None = None
    """The header that names the head, for clients whose agents share the session's id."""


IDENTITIES: Final = (
    Identity("Claude Code", Place.HEADER, ("x-claude-code-session-id",), head="x-claude-code-agent-id"),
    Identity("Codex", Place.HEADER, ("thread-id",)),
    Identity("Codex, behind a proxy that passes x-* only", Place.HEADER, (CODEX_TURN, "thread_id")),
    Identity("Open WebUI", Place.HEADER, ("x-openwebui-chat-id",)),
    Identity("opencode", Place.HEADER, ("x-opencode-session",)),
    Identity("opencode", Place.HEADER, ("x-opencode-session-id",)),
    Identity("opencode, pi", Place.HEADER, ("x-session-affinity",)),
    Identity("any client or proxy, vLLM's own", Place.HEADER, (HEADER,), Form.SPEAKER),
    Identity("LiteLLM", Place.HEADER, ("x-litellm-session-id",)),
    Identity("pi, old Codex", Place.HEADER, ("session_id",)),
    Identity("old Codex", Place.HEADER, ("session-id",)),
    Identity("any client, vLLM's own", Place.BODY, ("session_id",), Form.SPEAKER),
    Identity("any client, vLLM's own", Place.BODY, ("vllm_xargs", "session_id"), Form.SPEAKER),
    Identity("Claude Code", Place.BODY, ("metadata", "user_id", "session_id")),
    Identity("old Claude Code", Place.BODY, ("metadata", "user_id"), Form.OLD_CLAUDE),
    Identity("Codex", Place.BODY, ("client_metadata", "thread_id")),
    Identity("Codex, pi, LiteLLM: the family", Place.BODY, ("prompt_cache_key",)),
)
"""In order of precedence. The first row that a request has names its conversation."""

HEADERS: Final = frozenset(
    name.encode()
    for row in IDENTITIES
    for name in (row.path[0] if row.place is Place.HEADER else None, row.head)
    if name is not None
)
_OLD_CLAUDE: Final = re.compile(r"user_.*_session_([A-Za-z0-9-]+)")


def read_speaker(headers: Mapping[str, str], body: Body | None) -> Speaker | None:
    """Return the session and the head that a request names, or None if it names none."""
    for row in IDENTITIES:
        text = _text_at(row, headers, body)
        speaker = None if text is None else _speaker(row.form, text)
        if speaker is None or speaker.session_id is None:
            continue
        if row.head is not None:
            return replace(speaker, head=legal_session_id(headers.get(row.head, "")))
        return speaker
    return None


def _text_at(row: Identity, headers: Mapping[str, str], body: Body | None) -> str | None:
    first, *rest = row.path
    value: Any = headers.get(first) if row.place is Place.HEADER else body and body.field(first)
    for key in rest:
        value = object_in(value).get(key)
    return value if isinstance(value, str) else None


def object_in(value: object) -> Mapping[str, Any]:
    """Return the object, also one that is written as JSON in a text. Return an empty one for anything else."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _speaker(form: Form, text: str) -> Speaker | None:
    match form:
        case Form.SPEAKER:
            return parse_speaker(text)
        case Form.OLD_CLAUDE:
            session = _OLD_CLAUDE.fullmatch(text)
            return Speaker(session[1]) if session else None
        case Form.IDENTIFIER:
            return Speaker(legal_session_id(text))

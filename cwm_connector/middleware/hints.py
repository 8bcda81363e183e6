"""Recognises titles, suggestions and summaries by what their clients write into them.

To teach CWM another request, add a row to `MARKERS`. A missing row does little harm, because the engine also looks at
the tools, the opening and the tokens. A wrong row does, so a marker must be text that only a program writes.

API server, event loop. Nothing here blocks.
"""

import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cwm_connector.core.speaker import Hints, RequestKind
from cwm_connector.middleware.body import Body, Conversation
from cwm_connector.middleware.identities import CODEX_TURN, object_in

SUBAGENT: Final = "x-openai-subagent"
HEADERS: Final = frozenset((CODEX_TURN.encode(), SUBAGENT.encode()))


class Where(enum.Enum):
    """The text that begins with a marker."""

    SYSTEM = enum.auto()
    USER = enum.auto()
    """The user's last message."""
    TASK = enum.auto()
    """The only message of a request without tools."""


@dataclass(frozen=True, slots=True)
class Marker:
    """The beginning of a text that a client puts into one kind of request."""

    client: str
    kind: RequestKind
    where: Where
    text: str


_SIDE, _COMPACTION = RequestKind.SIDE, RequestKind.COMPACTION
MARKERS: Final = (
    Marker("Claude Code, title", _SIDE, Where.SYSTEM, "You are naming a coding session"),
    Marker("Claude Code, status", _SIDE, Where.SYSTEM, "A user kicked off a Claude Code agent"),
    Marker("Claude Code, /btw", _SIDE, Where.USER, "<system-reminder>This is a side question from the user."),
    Marker("old Claude Code, topic", _SIDE, Where.SYSTEM, "Analyze if this message indicates a new conversation topic"),
    Marker("Claude Code", _COMPACTION, Where.USER, "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools."),
    Marker("old Claude Code", _COMPACTION, Where.USER, "Your task is to create a detailed summary of the conversation"),
    Marker("Codex, title", _SIDE, Where.USER, "Generate a concise, single-line task title"),
    Marker("Codex", _COMPACTION, Where.USER, "You are performing a CONTEXT CHECKPOINT COMPACTION."),
    Marker("opencode, title", _SIDE, Where.SYSTEM, "You are a title generator."),
    Marker("opencode", _COMPACTION, Where.SYSTEM, "You are a context summarization agent."),
    Marker("Qwen Code, suggestions", _SIDE, Where.USER, "[SUGGESTION MODE:"),
    Marker("Qwen Code, memory", _SIDE, Where.SYSTEM, "You are now acting as the managed memory extraction subagent"),
    Marker("Qwen Code, memory", _SIDE, Where.SYSTEM, "You are performing a managed memory dream"),
    Marker("Qwen Code, Gemini CLI", _COMPACTION, Where.USER, "You are the component that summarizes"),
    Marker("Qwen Code, Gemini CLI", _COMPACTION, Where.SYSTEM, "You are the component that summarizes"),
    Marker("pi", _COMPACTION, Where.SYSTEM, "You are a context summarization assistant."),
    Marker("Cline", _COMPACTION, Where.SYSTEM, "Summarize the provided coding session into a concise continuation"),
    Marker("aider, commit", _SIDE, Where.SYSTEM, "You are an expert software engineer that generates concise"),
    Marker("aider", _COMPACTION, Where.SYSTEM, "*Briefly* summarize this partial conversation"),
    Marker("Open WebUI, title, tags, follow-ups", _SIDE, Where.TASK, "### Task:\n"),
)

_SIDE_PROPERTIES: Final = frozenset(
    ("title", "topic", "isNewTopic", "tags", "follow_ups", "followUps", "suggestions", "queries", "emoji")
)
"""A request without tools whose JSON schema asks for nothing else is no turn."""
_QUOTA_CHECKS: Final = frozenset(("quota", "test"))
"""What Claude Code asks, with room for one token, to see whether it may."""
_CODEX_SOURCES: Final = {"thread_title": _SIDE, "memory_consolidation": _SIDE}
_CODEX_SUBAGENTS: Final = {"compact": _COMPACTION, "memory_consolidation": _SIDE}
_BILLING: Final = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
"""Claude Code's first line, which differs from conversation to conversation."""


def read_hints(headers: Mapping[str, str], body: Body | None) -> Hints:
    """Return what a request's headers and body tell about it."""
    kind = _kind_by_headers(headers)
    if body is None:
        return Hints(kind=kind or RequestKind.TURN)
    asked = body.conversation()
    return Hints(
        kind=kind or _kind_by_body(body, asked) or RequestKind.TURN,
        opening=_opening(asked),
        has_tools=bool(asked.tools),
    )


def _kind_by_headers(headers: Mapping[str, str]) -> RequestKind | None:
    turn = object_in(headers.get(CODEX_TURN))
    return _kind_of_codex(turn) or _CODEX_SUBAGENTS.get(headers.get(SUBAGENT, ""))


def _kind_of_codex(turn: Mapping[str, Any]) -> RequestKind | None:
    if turn.get("request_kind") == "compaction":
        return RequestKind.COMPACTION
    source = turn.get("thread_source")
    return _CODEX_SOURCES.get(source) if isinstance(source, str) else None


def _kind_by_body(body: Body, asked: Conversation) -> RequestKind | None:
    turn = object_in(object_in(body.field("client_metadata")).get(CODEX_TURN))
    if (kind := _kind_of_codex(turn)) is not None:
        return kind
    for marker in MARKERS:
        if any(text.lstrip().startswith(marker.text) for text in _texts_at(marker.where, body, asked)):
            return marker.kind
    if not asked.tools and (_asks_for_side_data(body) or _is_quota_check(body, asked)):
        return RequestKind.SIDE
    return None


def _texts_at(where: Where, body: Body, asked: Conversation) -> tuple[str, ...]:
    match where:
        case Where.SYSTEM:
            return asked.system
        case Where.USER:
            return asked.last_user
        case Where.TASK:
            is_task = asked.is_single and not asked.tools and not body.field("stream")
            return asked.last_user if is_task else ()


def _asks_for_side_data(body: Body) -> bool:
    """Return whether the answer has to be JSON with a title, tags or the like, and nothing else."""
    for form in (
        object_in(body.field("response_format")),
        object_in(object_in(body.field("text")).get("format")),
        object_in(object_in(body.field("output_config")).get("format")),
    ):
        schema = object_in(form.get("json_schema")).get("schema") or form.get("schema")
        properties = object_in(object_in(schema).get("properties"))
        if form.get("type") == "json_schema" and properties and properties.keys() <= _SIDE_PROPERTIES:
            return True
    return False


def _is_quota_check(body: Body, asked: Conversation) -> bool:
    limits = [body.field(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    return 1 in limits and asked.is_single and len(asked.last_user) == 1 and asked.last_user[0] in _QUOTA_CHECKS


def _opening(asked: Conversation) -> str | None:
    system = [text for each in asked.system if (text := _BILLING.sub("", each))]
    if not asked.tools and not system:
        return None
    digest = hashlib.sha256(msgspec.json.encode((asked.tools, "\n".join(system))))
    return digest.hexdigest()[:8]

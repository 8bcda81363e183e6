"""Reads from a request's body what tells conversations apart: ids, tools, system text, the user's last message.

Everything else is skipped without making Python objects of it. A field with an unexpected type counts as missing.

API server, event loop. Decoding takes about a millisecond for each megabyte.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

T = TypeVar("T")
_SYSTEM: Final = ("system", "developer")


class _Fields(Struct):
    """The fields of all four endpoints that count. Raw, so that an odd one spoils no other."""

    session_id: Raw = Raw()
    vllm_xargs: Raw = Raw()
    metadata: Raw = Raw()
    client_metadata: Raw = Raw()
    prompt_cache_key: Raw = Raw()
    messages: Raw = Raw()
    input: Raw = Raw()
    system: Raw = Raw()
    instructions: Raw = Raw()
    tools: Raw = Raw()
    response_format: Raw = Raw()
    output_config: Raw = Raw()
    text: Raw = Raw()
    max_tokens: Raw = Raw()
    max_completion_tokens: Raw = Raw()
    max_output_tokens: Raw = Raw()
    stream: Raw = Raw()


class _Message(Struct):
    role: str = ""
    content: Raw = Raw()


class _Part(Struct):
    text: Any = None


class _Named(Struct):
    name: Any = None


class _Tool(Struct):
    name: Any = None
    type: Any = None
    function: _Named | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """The fields of a request that are needed here."""

    tools: tuple[str, ...]
    """Their names."""
    system: tuple[str, ...]
    """The texts that the client set before the first message."""
    last_user: tuple[str, ...]
    """The texts of the user's last message."""
    is_single: bool
    """True if there is nothing but one message, apart from the system text."""


class Body:
    """One request's body."""

    def __init__(self, fields: _Fields) -> None:
        self._fields = fields

    def field(self, name: str) -> Any:
        """Return the decoded value of a top-level field, or None."""
        return _decode(getattr(self._fields, name), Any)

    def conversation(self) -> Conversation:
        """Return what the request asks."""
        fields = self._fields
        messages = _decode(fields.messages, list[_Message]) or _decode(fields.input, list[_Message]) or []
        lead = next((n for n, message in enumerate(messages) if message.role not in _SYSTEM), len(messages))
        before = (fields.system, fields.instructions, *(message.content for message in messages[:lead]))
        asked = next((message.content for message in reversed(messages) if message.role == "user"), fields.input)
        return Conversation(
            tools=tuple(_tool_name(tool) for tool in _decode(fields.tools, list[_Tool]) or ()),
            system=tuple(text for content in before for text in _texts(content)),
            last_user=tuple(_texts(asked)),
            is_single=len(messages) - lead <= 1,
        )


def decode_body(content: bytes) -> Body | None:
    """Return the body, or None if it is not a JSON object."""
    fields = _decode(Raw(content), _Fields)
    return None if fields is None else Body(fields)


def _decode(raw: Raw, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _texts(content: Raw) -> list[str]:
    """Return the texts of a message's content, which is a text or a list of parts."""
    text = _decode(content, str)
    if text is not None:
        return [text]
    return [part.text for part in _decode(content, list[_Part]) or () if isinstance(part.text, str)]


def _tool_name(tool: _Tool) -> str:
    return str(tool.name or (tool.function and tool.function.name) or tool.type)

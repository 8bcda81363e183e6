"""ASGI middleware for vLLM's HTTP server that says in X-Session-ID who sent a request.

    vllm serve … --middleware cwm_connector.middleware.SessionHeader        (`cwm serve` adds it)

Clients name their conversations in fields that vLLM does not know (identities.py), and mark titles, suggestions and
summaries by what they write into them (hints.py). The middleware puts both into the one field that vLLM hands to the
connector. core/speaker.py describes it. The header identifies the client but does not authorise it.

vLLM takes `session_id` in the body before the header, except for /v1/messages. Such a request keeps its session but
loses the middleware's hints. The middleware never changes a body.

Runs on the server's event loop, for every request. It reads the bodies of the generation endpoints, up to a limit, and
hands them on as they came. It never waits for anything but the body, never logs, and whatever a request contains, never
raises and never refuses it. Imports the standard library and msgspec only.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, Final

from cwm_connector.core.speaker import NO_HINTS, RequestKind, Speaker, format_speaker
from cwm_connector.middleware import hints, identities
from cwm_connector.middleware.body import Body, decode_body
from cwm_connector.middleware.hints import read_hints
from cwm_connector.middleware.identities import read_speaker

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER: Final = identities.HEADER.encode()
MAX_BODY_BYTES: Final = 64 << 20
"""A larger body goes on unread."""
_GENERATES: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""How the paths end whose bodies are read. Nothing else makes a session."""
_LENGTH: Final = b"content-length"
_KNOWN: Final = identities.HEADERS | hints.HEADERS | {_LENGTH}


class SessionHeader:
    """Sets X-Session-ID of requests whose session or purpose it recognises. Changes nothing else."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the header if there is something to say, then call the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # ASGI has header names in lower case. Of a repeated header the first one counts, as in vLLM.
        headers = {name.decode(): _text(value) for name, value in reversed(scope["headers"]) if name in _KNOWN}
        body = None
        if scope.get("method") == "POST" and str(scope.get("path")).endswith(_GENERATES) and not _is_large(headers):
            content, receive = await _read(receive)
            body = None if content is None else decode_body(content)
        value = _header_value(headers, body)
        if value and value != headers.get(identities.HEADER):
            # The old list belongs to the server, so it is not changed.
            others = [pair for pair in scope["headers"] if pair[0] != HEADER]
            scope["headers"] = [*others, (HEADER, value.encode())]
        await self._app(scope, receive, send)


def _header_value(headers: Mapping[str, str], body: Body | None) -> str:
    """Return the value for X-Session-ID, or an empty text if nothing is known that is worth saying."""
    speaker = read_speaker(headers, body) or Speaker(None)
    if speaker.hints == NO_HINTS:  # a client that writes hints itself knows better
        speaker = replace(speaker, hints=read_hints(headers, body))
    known = speaker.hints
    if speaker.session_id is None and known.kind is RequestKind.TURN and known.opening is None:
        return ""
    return format_speaker(speaker)


def _text(value: bytes) -> str:
    """Return a header's text. Clients send UTF-8, old ones Latin-1, which reads every byte."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _is_large(headers: Mapping[str, str]) -> bool:
    length = headers.get(_LENGTH.decode(), "")
    return length.isdecimal() and len(length) < 20 and int(length) > MAX_BODY_BYTES


async def _read(receive: Receive) -> tuple[bytes | None, Receive]:
    """Return the body, or None if it is incomplete or too large, and a `receive` that gives every message again."""
    messages: deque[Message] = deque()
    size, is_complete = 0, False
    while not is_complete and size <= MAX_BODY_BYTES:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            break  # the client is gone, and the application will see it
        size += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
    content = b"".join(message.get("body", b"") for message in messages) if is_complete else None

    async def receive_again() -> Message:
        return messages.popleft() if messages else await receive()

    return content if size <= MAX_BODY_BYTES else None, receive_again

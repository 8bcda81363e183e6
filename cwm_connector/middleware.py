"""ASGI middleware for vLLM's HTTP server that sets X-Session-ID from the headers of known clients.

    vllm serve … --middleware cwm_connector.middleware.SessionHeader        (`cwm serve` adds it)

Claude Code and Codex send their session with every request, in headers that vLLM does not know. A subagent of Claude
Code also sends an id of its own. The middleware turns it into `SESSION/AGENT`, which sessions/index.py parses. The
header identifies the client but does not authorise it.

Runs on the server's event loop, for every request, and only looks at the headers. It never blocks, never reads a body,
never logs and never raises. Imports the standard library only.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER: Final = b"x-session-id"
CLAUDE_CODE_SESSION: Final = b"x-claude-code-session-id"
CLAUDE_CODE_AGENT: Final = b"x-claude-code-agent-id"
_CLIENTS: Final = (CLAUDE_CODE_SESSION, b"session-id", b"session_id")
"""The headers with a session, in order of precedence. Codex sends one of the last two, depending on its version."""
_KNOWN: Final = frozenset((HEADER, CLAUDE_CODE_AGENT, *_CLIENTS))
_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""A session id, as in core/names.py. A header with anything else is ignored."""


class SessionHeader:
    """Adds X-Session-ID to HTTP requests that have none and come from a known client. Changes nothing else."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header if there is a session for it, then call the application."""
        if scope["type"] == "http" and (session := _session_of(scope["headers"])) is not None:
            # The old list belongs to the server, so it is not changed.
            scope["headers"] = [*scope["headers"], (HEADER, session)]
        await self._app(scope, receive, send)


def _session_of(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the value for X-Session-ID, or None if the client sent that header or has no valid session."""
    # ASGI has header names in lower case. Of a repeated header the first one counts, as in vLLM.
    values = {name: value for name, value in reversed(headers) if name in _KNOWN}
    if not values or HEADER in values:
        return None
    session = next((values[name] for name in _CLIENTS if name in values), b"")
    if not _ID.fullmatch(session):
        return None
    agent = values.get(CLAUDE_CODE_AGENT, b"") if CLAUDE_CODE_SESSION in values else b""
    return session + b"/" + agent if _ID.fullmatch(agent) else session

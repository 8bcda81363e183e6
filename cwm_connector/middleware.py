"""ASGI middleware for vLLM's HTTP server: the session that a client names in its own header becomes X-Session-ID.

    vllm serve … --middleware cwm_connector.middleware.SessionHeader        (`cwm serve` adds it)

Claude Code and Codex tell their session with every request, in headers that vLLM does not know. A subagent of Claude
Code tells the session and an id of its own: it becomes `SESSION/AGENT`, which sessions/index.py takes apart again. The
header is the client's word: identity, not authorisation.

Runs on the server's event loop for every request: a look through the headers, nothing else. It never reads a body,
never logs, never raises, and imports the standard library alone.
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
"""The first that is there counts; the latter two are Codex's, of newer and of older versions."""
_KNOWN: Final = frozenset((HEADER, CLAUDE_CODE_AGENT, *_CLIENTS))
_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""A session id as protocol.py has it; what is none is left to vLLM as it came."""


class SessionHeader:
    """Passes everything on; of HTTP requests that have no X-Session-ID it adds one where it can."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (told := _told_session(scope["headers"])) is not None:
            # A new list: the one that came belongs to the server.
            scope["headers"] = [*scope["headers"], (HEADER, told)]
        await self._app(scope, receive, send)


def _told_session(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The value for X-Session-ID, or None where the client sent it itself or names no session that can be one."""
    # ASGI has names in lower case; of a repeated header the first counts, as in vLLM.
    told = {name: value for name, value in reversed(headers) if name in _KNOWN}
    if not told or HEADER in told:
        return None
    session = next((told[name] for name in _CLIENTS if name in told), b"")
    if not _ID.fullmatch(session):
        return None
    agent = told.get(CLAUDE_CODE_AGENT, b"") if CLAUDE_CODE_SESSION in told else b""
    return session + b"/" + agent if _ID.fullmatch(agent) else session

"""Completion of window and session names, in prompts and in the addresses of resources."""

from typing import Final

from mcp.server.mcpserver import MCPServer
from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from cwm_connector.core.errors import CWMError
from cwm_connector.protocol import calls
from cwm_mcp.api.operations import Operations

_WINDOWS: Final = frozenset({"window", "name"})
_SESSIONS: Final = frozenset({"session"})
_MOST: Final = 100
"""The protocol's limit, and a list's."""


def register(server: MCPServer[Operations], operations: Operations) -> None:
    """Add the completion to the server."""

    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        """Offer names. If nothing can be read, there is nothing to offer."""
        try:
            if argument.name in _WINDOWS:
                return await _windows(operations, argument.value)
            if argument.name in _SESSIONS:
                return await _sessions(operations, argument.value)
        except CWMError:
            pass
        return None

    server.completion()(complete)  # type: ignore[no-untyped-call]


async def _windows(operations: Operations, begun: str) -> Completion:
    """Return window names that begin with the typed text, newest first."""
    names: list[str] = []
    offset, more = 0, True
    while more and len(names) <= _MOST:
        page = await operations.list_windows(calls.ListArgs(limit=_MOST, offset=offset))
        names += [window.name for window in page.windows if window.name.startswith(begun)]
        offset, more = offset + _MOST, page.has_more
    return Completion(values=names[:_MOST], has_more=len(names) > _MOST)


async def _sessions(operations: Operations, begun: str) -> Completion:
    """Return session ids that begin with the typed text, last active first."""
    ids: list[str] = []
    offset, more = 0, True
    while more and len(ids) <= _MOST:
        page = await operations.sessions(calls.SessionsArgs(limit=_MOST, offset=offset))
        ids += [session.session_id for session in page.sessions if session.session_id.startswith(begun)]
        offset, more = offset + _MOST, page.has_more
    return Completion(values=ids[:_MOST], has_more=len(ids) > _MOST)

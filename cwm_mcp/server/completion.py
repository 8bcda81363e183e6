"""Completion of window and session names, in prompts and in the addresses of resources."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Page:
    """One page of a list."""

    names: list[str]
    has_more: bool


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

    async def page_at(offset: int) -> _Page:
        page = await operations.list_windows(calls.ListArgs(limit=_MOST, offset=offset))
        return _Page([window.name for window in page.windows], page.has_more)

    return await _beginning_with(begun, page_at)


async def _sessions(operations: Operations, begun: str) -> Completion:
    """Return session ids that begin with the typed text, last active first."""

    async def page_at(offset: int) -> _Page:
        page = await operations.sessions(calls.SessionsArgs(limit=_MOST, offset=offset))
        return _Page([session.session_id for session in page.sessions], page.has_more)

    return await _beginning_with(begun, page_at)


async def _beginning_with(begun: str, page_at: Callable[[int], Awaitable[_Page]]) -> Completion:
    """Return the listed names that begin with the typed text, in the order of the list."""
    names: list[str] = []
    offset, more = 0, True
    while more and len(names) <= _MOST:
        page = await page_at(offset)
        names += [name for name in page.names if name.startswith(begun)]
        offset, more = offset + _MOST, page.has_more
    return Completion(values=names[:_MOST], has_more=len(names) > _MOST)

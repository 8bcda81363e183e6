"""MCP resources: windows, their token ids and text, and the lists of windows and sessions.

A client shows a model what it reads, so every page stays under 10 kB and names the next one; a program may ask for
longer pages of token ids. Failures are the library's own errors, with the contract's code in text and data.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from mcp.server.mcpserver import MCPServer
from mcp.types import Resource

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_window_name
from cwm_connector.protocol import calls
from cwm_connector.protocol.results import WindowItem
from cwm_mcp.api import uris
from cwm_mcp.api.operations import Operations
from cwm_mcp.server.library_errors import resource_errors

PAGE_BYTES: Final = 9_000
PAGE_IDS: Final = 1_024
"""Token ids, of six digits at most and a comma each."""
PAGE_TEXT_TOKENS: Final = 2_000
MAX_PAGE_IDS: Final = 100_000
_MAX_CUT_OFF: Final = 4
"""Tokens that can lie between the first and the last byte of one character."""
_JSON: Final = "application/json"


async def newest(operations: Operations) -> list[Resource]:
    """Return the entries of resources/list that are windows: the newest, as many as fit on a page."""
    with resource_errors():
        windows = (await operations.list_windows(calls.ListArgs(limit=100))).windows
    resources = [_entry(window) for window in windows]
    sizes = [len(resource.model_dump_json(by_alias=True, exclude_none=True)) for resource in resources]
    return resources[: _fitting(sizes)]


def _entry(window: WindowItem) -> Resource:
    summary = f"{window.token_count} tokens of session {window.session_id}, {window.created_at}. {window.description}"
    return Resource(
        uri=uris.window_uri(window.name), name=window.name, description=summary[:200].rstrip(), mime_type=_JSON
    )


def register(server: MCPServer[Operations], operations: Operations) -> None:
    """Add the resources to the server."""
    _register_lists(server, operations)
    _register_windows(server, operations)


def _register_lists(server: MCPServer[Operations], operations: Operations) -> None:
    async def windows_list(offset: str = "0") -> str:
        """Return all windows, newest first."""
        with resource_errors():
            start = _number("offset", offset, 0, calls.MAX_OFFSET)
            page = msgspec.to_builtins(await operations.list_windows(calls.ListArgs(limit=100, offset=start)))
        return _page("windows", page, start, uris.WINDOWS)

    async def sessions_list(offset: str = "0") -> str:
        """Return all sessions, last active first."""
        with resource_errors():
            start = _number("offset", offset, 0, calls.MAX_OFFSET)
            page = msgspec.to_builtins(await operations.sessions(calls.SessionsArgs(limit=100, offset=start)))
        return _page("sessions", page, start, uris.SESSIONS)

    async def first_windows() -> str:
        """Return all windows, newest first."""
        return await windows_list()

    async def first_sessions() -> str:
        """Return all sessions, last active first."""
        return await sessions_list()

    server.resource(uris.WINDOWS, name="windows", mime_type=_JSON)(first_windows)
    server.resource(uris.SESSIONS, name="sessions", mime_type=_JSON)(first_sessions)
    server.resource(f"{uris.WINDOWS}{{?offset}}", name="windows_page", mime_type=_JSON)(windows_list)
    server.resource(f"{uris.SESSIONS}{{?offset}}", name="sessions_page", mime_type=_JSON)(sessions_list)


def _register_windows(server: MCPServer[Operations], operations: Operations) -> None:
    async def window(name: str) -> str:
        """Return what is known about a window."""
        with resource_errors():
            return _text(msgspec.to_builtins(await operations.window(check_window_name(name))))

    async def tokens(name: str, offset: str = "0", limit: str = str(PAGE_IDS)) -> str:
        """Return a window's exact token ids, for a request that continues from them."""
        with resource_errors():
            ids, start, end = await _chosen(operations, name, offset, limit, MAX_PAGE_IDS)
        more = None if end >= len(ids) else f"{uris.tokens_uri(name)}?offset={end}&limit={limit}"
        page = {"window_name": name, "token_count": len(ids), "offset": start, "token_ids": list(ids[start:end])}
        return _text({**page, "next": more})

    async def transcript(name: str, offset: str = "0", limit: str = str(PAGE_TEXT_TOKENS)) -> str:
        """Return a window's text, special tokens included. offset and limit count tokens."""
        with resource_errors():
            ids, start, end = await _chosen(operations, name, offset, limit, PAGE_TEXT_TOKENS)
            text, end = await _text_page(operations, ids, start, end)
        if end >= len(ids):
            return text
        return f"{text}\n\n[tokens {start} to {end} of {len(ids)}; go on at {uris.transcript_uri(name)}?offset={end}]"

    server.resource(uris.WINDOW, mime_type=_JSON)(window)
    server.resource(f"{uris.TOKENS}{{?offset,limit}}", mime_type=_JSON)(tokens)
    server.resource(f"{uris.TRANSCRIPT}{{?offset,limit}}", mime_type="text/plain")(transcript)


async def _chosen(
    operations: Operations, name: str, offset: str, limit: str, most: int
) -> tuple[Sequence[int], int, int]:
    """Return all ids of the window, and where the part that was asked for starts and ends."""
    check_window_name(name)
    length = _number("limit", limit, 1, most)
    start = _number("offset", offset, 0, calls.MAX_OFFSET)
    ids = await operations.token_ids(name)
    return ids, start, max(start, min(start + length, len(ids)))


async def _text_page(operations: Operations, ids: Sequence[int], start: int, end: int) -> tuple[str, int]:
    """Return the text of `ids` from `start` on, and where it ends: at `end`, or earlier if the page is full."""
    if start >= end:
        return "", end
    text = await operations.text_of(ids[start:end])
    while (size := len(text.encode())) > PAGE_BYTES and end - start > 1:
        end = start + max(1, (end - start) * PAGE_BYTES // size - 1)
        text = await operations.text_of(ids[start:end])
    if end == len(ids) or not text.endswith("\N{REPLACEMENT CHARACTER}"):
        return text, end
    # The page ends within a character; it belongs on the next one.
    for shorter in range(end - 1, max(start, end - 1 - _MAX_CUT_OFF), -1):
        whole = await operations.text_of(ids[start:shorter])
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return whole, shorter
    return text, end


def _page(name: str, page: dict[str, Any], start: int, uri: str) -> str:
    """Return as many of the page's items as fit, and the address of the next ones."""
    items = page[name]
    shown = items[: _fitting([len(_text(item).encode()) for item in items])]
    end = start + len(shown)
    more = f"{uri}?offset={end}" if shown and end < page["total"] else None
    return _text({name: shown, "total": page["total"], "next": more})


def _fitting(sizes: Sequence[int]) -> int:
    """Return how many of the first items fit on a page. One that is too long alone is still shown."""
    used = 0
    for count, size in enumerate(sizes):
        used += size + 1
        if used > PAGE_BYTES:
            return max(1, count)
    return len(sizes)


def _number(name: str, text: str, least: int, most: int) -> int:
    """Return the number in a text. Raises: `Code.ARGUMENT`."""
    if text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most:
        return int(text)
    raise CWMError(Code.ARGUMENT, f"{name} is {text[:20]!r}; give a number from {least} to {most}", argument=name)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""List what the shell offers on Tab: window names, tags and session ids.

The user waits for the list, so names and tags come straight from the catalog. Only the engine knows sessions that were
never frozen, so it is asked for session ids, with a short timeout. If anything fails, the list is empty.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from cwm_connector.catalog.base import Catalog, WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.protocol import calls
from cwm_mcp.api.operations import Operations
from cwm_mcp.settings import client_settings

_MAX_WINDOWS: Final = 1_000
"""The newest windows. A longer list would not help."""
_MAX_SESSIONS: Final = 100
_SESSIONS_TIMEOUT_S: Final = 1.0


def windows(incomplete: str) -> list[str]:
    """Return the names of windows that start with `incomplete`."""
    return _matching(incomplete, lambda: _read_catalog(_window_names))


def tags(incomplete: str) -> list[str]:
    """Return the tags that start with `incomplete`."""
    return _matching(incomplete, lambda: _read_catalog(_tags))


def sessions(incomplete: str) -> list[str]:
    """Return the sessions and their heads, as SESSION or SESSION/HEAD, that start with `incomplete`."""
    return _matching(incomplete, lambda: asyncio.run(_session_ids()))


def _matching(incomplete: str, read_names: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [name for name in read_names() if name.startswith(incomplete)]
    except Exception:  # a traceback in the middle of a command line would be worse than an empty list
        return []


def _read_catalog(query: Callable[[Catalog], list[str]]) -> list[str]:
    catalog = SqliteCatalog.open_read_only(client_settings().catalog_path)
    try:
        return query(catalog)
    finally:
        catalog.close()


def _window_names(catalog: Catalog) -> list[str]:
    return [row.name for row in catalog.list_windows(WindowQuery(limit=_MAX_WINDOWS)).windows]


def _tags(catalog: Catalog) -> list[str]:
    return sorted({tag for row in catalog.list_windows(WindowQuery(limit=_MAX_WINDOWS)).windows for tag in row.tags})


async def _session_ids() -> list[str]:
    operations = Operations(client_settings(), client_name="cwm completion")
    try:
        async with asyncio.timeout(_SESSIONS_TIMEOUT_S):
            page = await operations.sessions(calls.SessionsArgs(limit=_MAX_SESSIONS))
    finally:
        await operations.aclose()
    return [
        name
        for session in page.sessions
        for name in (session.session_id, *(f"{session.session_id}/{head}" for head in session.head_names or ()))
    ]

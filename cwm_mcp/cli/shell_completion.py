"""What the shell offers on Tab: names of windows and tags from the catalog, session ids from the engine or from it.

Somebody waits with a finger on the key. So the catalog is read without asking the engine, which alone knows the
sessions that were never frozen and gets a moment to tell them; and whatever fails offers nothing and says nothing.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from cwm_connector.catalog.base import Catalog, WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_mcp.api import arguments as a
from cwm_mcp.api.operations import Operations
from cwm_mcp.settings import client_settings

_MOST: Final = 1_000
"""A longer list helps nobody; these are the newest."""
_PATIENCE_S: Final = 1.0


def windows(incomplete: str) -> list[str]:
    return _offered(incomplete, lambda: _of_catalog(_names))


def tags(incomplete: str) -> list[str]:
    return _offered(incomplete, lambda: _of_catalog(_tags))


def sessions(incomplete: str) -> list[str]:
    return _offered(incomplete, lambda: asyncio.run(_session_ids()))


def _offered(incomplete: str, known: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [word for word in known() if word.startswith(incomplete)]
    except Exception:  # a traceback in the middle of somebody's command line would be worse than no offer
        return []


def _of_catalog(question: Callable[[Catalog], list[str]]) -> list[str]:
    catalog = SqliteCatalog.open_read_only(client_settings().catalog_path)
    try:
        return question(catalog)
    finally:
        catalog.close()


def _names(catalog: Catalog) -> list[str]:
    return [row.name for row in catalog.list_windows(WindowQuery(limit=_MOST)).windows]


def _tags(catalog: Catalog) -> list[str]:
    return sorted({tag for row in catalog.list_windows(WindowQuery(limit=_MOST)).windows for tag in row.tags})


async def _session_ids() -> list[str]:
    operations = Operations(client_settings(), client_name="cwm completion")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            page = await operations.sessions(a.SessionsArguments(limit=100))
    finally:
        await operations.aclose()
    return [session.session_id for session in page.sessions]

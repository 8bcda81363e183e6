"""List what the shell offers on Tab: names of windows, deleted ones too, tags and session ids.

The user waits for the list, so names and tags come straight from the catalog. Only the engine knows sessions that were
never frozen, so it is asked for session ids, with a short timeout. If anything fails, the list is empty.
"""

from collections.abc import Callable, Iterable
from typing import Final

Complete = Callable[[str], list[str]]
"""Returns the names that start with what was typed."""
_MAX_WINDOWS: Final = 1_000
"""The newest windows. A longer list would not help."""
_MAX_SESSIONS: Final = 100
_SESSIONS_TIMEOUT_S: Final = 1.0


def windows(incomplete: str) -> list[str]:
    """Return the names of windows that start with `incomplete`."""
    return _matching(incomplete, lambda: _newest("names"))


def deleted_windows(incomplete: str) -> list[str]:
    """Return the names of windows in the trash that start with `incomplete`."""
    return _matching(incomplete, lambda: _newest("deleted"))


def tags(incomplete: str) -> list[str]:
    """Return the tags that start with `incomplete`."""
    return _matching(incomplete, lambda: _newest("tags"))


def sessions(incomplete: str) -> list[str]:
    """Return the sessions and their heads, as SESSION or SESSION/HEAD, that start with `incomplete`."""
    return _matching(incomplete, lambda: _session_ids())


def _matching(incomplete: str, read_names: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [name for name in read_names() if name.startswith(incomplete)]
    except Exception:  # a traceback in the middle of a command line would be worse than an empty list
        return []


def _newest(wanted: str) -> list[str]:
    """Return the names or tags of the newest windows, or the deleted names, straight from the catalog."""
    from cwm_connector.catalog import proposals
    from cwm_mcp.settings import client_settings

    reads = {"names": proposals.newest_names, "tags": proposals.tags_of_newest, "deleted": proposals.deleted_names}
    return reads[wanted](client_settings().catalog_path, _MAX_WINDOWS)


def _session_ids() -> list[str]:
    from cwm_connector.protocol.calls import SessionsArgs
    from cwm_mcp.api.direct.reads import Reads
    from cwm_mcp.settings import client_settings

    page = Reads(client_settings(), "cwm completion", _SESSIONS_TIMEOUT_S).sessions(SessionsArgs(limit=_MAX_SESSIONS))
    return [
        name
        for session in page.sessions
        for name in (session.session_id, *(f"{session.session_id}/{head}" for head in session.head_names or ()))
    ]

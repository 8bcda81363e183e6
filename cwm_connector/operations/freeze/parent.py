"""Finds the window that a conversation goes on from. Catalog thread."""

from collections.abc import Sequence
from typing import Final

from cwm_connector.catalog.base import Catalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Micros, salt_hash

COMPARED: Final = 16
"""The newest windows of the session whose chunks are compared."""


def parent_of(catalog: Catalog, session_id: str, cache_salt: str | None, keys: Sequence[ChunkKey]) -> str | None:
    """Return the window of the session that shares the longest beginning with the chunks `keys`.

    The candidates are the windows that were frozen from the session, the one that was last thawed into it, and the one
    that the salt was made for. Of equally long ones it is the one that was last frozen or thawed.
    """
    events: dict[str, Micros] = {}
    row = catalog.session(session_id)
    for name in row.windows[:COMPARED] if row else ():
        events[name] = catalog.window(name).created_at
    thaws = [catalog.last_thaw_into(session_id)]
    if cache_salt is not None:
        of_salt = salt_hash(cache_salt)
        thaws += [binding for binding in catalog.bindings() if binding.salt_hash == of_salt]
    for binding in thaws:
        if binding is not None:
            events[binding.window_name] = max(binding.created_at, events.get(binding.window_name, Micros(0)))
    return max(events, key=lambda name: (_common_chunks(catalog, name, keys), events[name]), default=None)


def _common_chunks(catalog: Catalog, name: str, keys: Sequence[ChunkKey]) -> int:
    """Return how many leading chunks the window shares. A key stands for all tokens up to the end of its chunk."""
    try:
        held = {chunk.key for chunk in catalog.chunks_of(name)}
    except CWMError as problem:
        if problem.code is not Code.CORRUPT:
            raise
        return 0
    return next((count for count, key in enumerate(keys) if key not in held), len(keys))

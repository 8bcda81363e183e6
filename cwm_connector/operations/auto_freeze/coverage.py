"""How much of a head is already in a window that was made before the engine's start. Control and catalog thread."""

import asyncio
from array import array
from collections.abc import Sequence
from typing import Final

from cwm_connector.catalog.base import Catalog
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import chunk_specs
from cwm_connector.core.types import ChunkKey
from cwm_connector.operations.context import EngineContext
from cwm_connector.sessions.views import HeadSnapshot

WINDOWS_COMPARED: Final = 8
"""Windows whose token ids are read, the newest of those that share most chunks with the head."""


async def covered_tokens(engine: EngineContext, snapshot: HeadSnapshot) -> int:
    """Return how many leading tokens of the head the session's windows hold.

    The chunks decide which windows are compared, so the cost does not depend on how many windows the session has. A
    window that shares less than a chunk with the head counts as none. So does one that can't be read.
    """
    if (extras := snapshot.carried.known) is None:
        return 0
    passport = engine.passport.carrying(extras)
    specs = await asyncio.to_thread(chunk_specs, passport, engine.geometry, snapshot.token_ids)
    whole = [spec.key for spec in specs if spec.blocks == engine.geometry.blocks_per_chunk]

    def read(catalog: Catalog) -> int:
        row = catalog.session(snapshot.session_id)
        if row is None or not row.windows:
            return 0
        names = _windows_that_share_most(catalog, whole, frozenset(row.windows))
        size = engine.geometry.block_tokens
        covered = [_covered_by(catalog, name, snapshot.token_ids, size) for name in names[-WINDOWS_COMPARED:]]
        return max(covered, default=0)

    return await engine.catalog.run(read)


def _windows_that_share_most(catalog: Catalog, keys: Sequence[ChunkKey], ours: frozenset[str]) -> Sequence[str]:
    """Return those of our windows that hold the longest part of the chain `keys`, oldest first.

    A window that holds a chunk also holds those before it, so a binary search finds the last one.
    """
    found: Sequence[str] = ()
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        key = keys[middle]
        holding = [name for name in catalog.windows_with([key]).get(key, ()) if name in ours]
        if holding:
            found, low = holding, middle + 1
        else:
            high = middle
    return found


def _covered_by(catalog: Catalog, name: str, token_ids: "array[int]", block_tokens: int) -> int:
    """Return how many leading tokens the window holds. Only those that it can restore count if it is partial."""
    try:
        window = catalog.window(name)
        held = array("i", catalog.token_ids_of(name))
    except CWMError as problem:
        if problem.code not in (Code.CORRUPT, Code.WINDOW_NOT_FOUND):
            raise
        return 0
    if window.restorable_tokens < len(held) - len(held) % block_tokens:
        held = held[: window.restorable_tokens]
    return _common_start(held, token_ids)


def _common_start(one: "array[int]", other: "array[int]") -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

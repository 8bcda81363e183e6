"""What a start does before anything else: the tiers are made to hold what the catalog says, the catalog to say where.

A chunk row is written after its bytes are durable, and removed before they are deleted. So after a kill at any instant
a tier can only hold more than the catalog knows: half-written leftovers and chunks of freezes that were never
acknowledged. Both go. Where each chunk lies is recorded anew from what is really there, whole: a copy that is gone or
has another length is not counted on any more, and a row without any copy is reported, not removed: its window says so
when it is thawed, and freezing the same tokens again stores the chunk anew.
"""

import logging
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwm_connector.catalog.base import Catalog, ChunkRow
from cwm_connector.claims import Claims
from cwm_connector.core import fsync
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, now_micros
from cwm_connector.tiers.base import ChunkId, ChunkStore

logger = logging.getLogger(__name__)

_STORE_ID = "store.id"


@dataclass(frozen=True, slots=True)
class Recovered:
    """`damaged` counts chunks of which no whole copy was found, or none is recorded where a tier could not be asked."""

    leftovers: int
    orphans: int
    damaged: int


@dataclass(frozen=True, slots=True)
class Swept:
    """What was removed from one tier because no chunk row stands for it."""

    chunks: int
    n_bytes: int


def pair_store(home: Path, chunks: Path) -> str:
    """Marks the chunk folder as this catalog's own, so that no other catalog ever sweeps it; returns the store's id.

    Any process of an engine may call it, at the same time as others.
    Raises: CWM-1003 if the folder belongs to another catalog.
    """
    mine, theirs = home / _STORE_ID, chunks / _STORE_ID
    adopted = theirs.read_text() if theirs.exists() and home == chunks.parent else None
    store_id = _write_once(mine, adopted or secrets.token_hex(16))
    if _write_once(theirs, store_id) != store_id:
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_DISK_PATH names {chunks}, which holds the chunks of another CWM_HOME; choose another folder",
        )
    return store_id


def _write_once(path: Path, text: str) -> str:
    """The file's text: `text` if there was no file, whole and durable from the moment that it can be seen."""
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fresh.write_text(text)
        fsync.sync(fresh)
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass  # another process was first
        finally:
            fresh.unlink()
        fsync.sync(path.parent)
    return path.read_text()


def require_catalog(catalog: Path, chunks: Path) -> None:
    """Before a catalog is opened, and made where there is none: chunks without one are somebody's, not orphans.

    Raises: CWM-4004 if the catalog is gone while the folder holds chunks.
    """
    if catalog.exists() and catalog.stat().st_size:
        return
    if any(path.suffix == ".data" for path in chunks.iterdir()):
        raise CWMError(
            Code.CORRUPT,
            f"the catalog {catalog} is gone and {chunks} holds chunks; restore it from a copy, or move the chunks away",
        )


def recover(catalog: Catalog, stores: Iterable[ChunkStore], claims: Claims) -> Recovered:
    """Runs once, on the catalog thread, while no job is under way and the store's lock is held.

    A tier that can't be asked (a Redis that is away) is left as it is recorded.
    """
    try:
        catalog.sweep_unreferenced()
    except CWMError as problem:
        if not problem.retryable:
            raise
        logger.warning("chunks without references are left for a collection: %s", problem)
    rows = {row.key: row for row in catalog.all_chunks()}
    leftovers = orphans = 0
    for store in stores:
        try:
            leftovers += store.sweep_leftovers()
            found = list(store.inventory())
            orphans += sweep(store, found, rows, claims).chunks if catalog.settled() else 0
            whole = _whole(found, rows)
            recorded = {key for key, row in rows.items() if store.name in row.tiers}
            if whole - recorded:
                store.sync()  # a killed process may have written what it never made durable
        except CWMError as problem:
            logger.warning("the %s tier is left as it was: %s", store.name.value, problem)
            continue
        catalog.place(store.name, sorted(whole - recorded), sorted(recorded - whole))
    return Recovered(leftovers, orphans, sum(not row.tiers for row in catalog.all_chunks()))


def _whole(found: Sequence[tuple[ChunkId, int]], rows: Mapping[ChunkKey, ChunkRow]) -> set[ChunkKey]:
    """The chunks of which all parts are there, by their lengths; every load verifies the bytes."""
    sizes: dict[ChunkKey, int] = {}
    for chunk, size in found:
        sizes[chunk.key] = sizes.get(chunk.key, 0) + size
    return {key for key, size in sizes.items() if key in rows and rows[key].size_bytes == size}


def sweep(
    store: ChunkStore, found: Iterable[tuple[ChunkId, int]], rows: Mapping[ChunkKey, ChunkRow], claims: Claims
) -> Swept:
    """Removes what of `found` no row stands for. No freeze of this engine may be under way; another engine's may."""
    removed = n_bytes = 0
    for chunk, size in found:
        gone = False
        for claim in _spare_claims(store, chunk, rows.get(chunk.key), claims):
            gone = store.delete(chunk, claim) or gone
        if gone:
            removed += 1
            n_bytes += size
    return Swept(removed, n_bytes)


def _spare_claims(store: ChunkStore, chunk: ChunkId, row: ChunkRow | None, claims: Claims) -> list[Claim]:
    """The claims on a part that nobody stands behind any more."""
    if not store.shared:
        return [NO_CLAIM] if row is None else []
    now = now_micros()
    held = store.claims_of(chunk)
    return [claim for claim in held if (row is None or claim != row.claim) and claims.is_abandoned(claim, now)]

"""What a start does before anything else: the tiers are made to hold what the catalog says, the catalog to say where.

A chunk row is written after its bytes are durable, and removed before they are deleted. So after a kill at any instant
a tier can only hold more than the catalog knows: half-written leftovers and chunks of freezes that were never
acknowledged. Both go. Where each chunk lies is recorded anew from what is really there, whole: a copy that is gone or
has another length is not counted on any more, and a row without any copy is reported, not removed: its window says so
when it is thawed, and freezing the same tokens again stores the chunk anew.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cwm_connector.catalog.base import Catalog, ChunkRow
from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, now_micros
from cwm_connector.operations.claims import Claims
from cwm_connector.tiers.base import ChunkId, DurableTier

logger = logging.getLogger(__name__)


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


def recover(catalog: Catalog, durable_tiers: Iterable[DurableTier], claims: Claims) -> Recovered:
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
    for store in durable_tiers:
        try:
            leftovers += store.sweep_leftovers()
            found = list(store.inventory())
            orphans += sweep(store, found, rows, claims).chunks if catalog.is_durable() else 0
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
    store: DurableTier, found: Iterable[tuple[ChunkId, int]], rows: Mapping[ChunkKey, ChunkRow], claims: Claims
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


def _spare_claims(store: DurableTier, chunk: ChunkId, row: ChunkRow | None, claims: Claims) -> list[Claim]:
    """The claims on a part that nobody stands behind any more."""
    if not store.shared:
        return [NO_CLAIM] if row is None else []
    now = now_micros()
    held = store.claims_of(chunk)
    return [claim for claim in held if (row is None or claim != row.claim) and claims.is_abandoned(claim, now)]

"""Recovery at the start of an engine: brings the tiers and the catalog into agreement.

A chunk row is written after its bytes are durable, and removed before they are deleted. So after a kill at any instant
a tier can only hold more than the catalog knows: half-written leftovers and chunks of freezes that were never
acknowledged. Both are removed. Each chunk's location is recorded from what the tiers really have. A copy that is
missing or has another length no longer counts. A row without any copy is reported and kept: a thaw of its window says
that the chunk is missing, and the next freeze of the same tokens stores it again.

Catalog thread; blocks on the disk and on Redis.
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
    """Counts of one recovery. `damaged`: chunks without a whole copy in any tier that could be asked."""

    leftovers: int
    orphans: int
    damaged: int


@dataclass(frozen=True, slots=True)
class Swept:
    """Parts of chunks that were removed from one tier because no chunk row needs them."""

    chunks: int
    n_bytes: int


def recover(catalog: Catalog, durable_tiers: Iterable[DurableTier], claims: Claims) -> Recovered:
    """Remove leftovers and record where each chunk lies. Run it once, before any job, while the home's lock is held.

    A tier that can't be asked (a Redis that is away) is left as it is recorded.
    Raises: what the catalog raises.
    """
    try:
        catalog.sweep_unreferenced()
    except CWMError as problem:
        if not problem.retryable:
            raise
        logger.warning("chunks without references stay until the next `cwm gc`: %s", problem)
    rows = {row.key: row for row in catalog.all_chunks()}
    leftovers = orphans = 0
    for tier in durable_tiers:
        try:
            leftovers += tier.sweep_leftovers()
            found = list(tier.inventory())
            orphans += sweep(tier, found, rows, claims).chunks if catalog.is_durable() else 0
            whole = _whole(found, rows)
            recorded = {key for key, row in rows.items() if tier.name in row.tiers}
            if whole - recorded:
                tier.sync()  # a killed process may have written what it never made durable
        except CWMError as problem:
            logger.warning("the %s tier is left as it was: %s", tier.name.value, problem)
            continue
        catalog.place(tier.name, sorted(whole - recorded), sorted(recorded - whole))
    return Recovered(leftovers, orphans, sum(not row.tiers for row in catalog.all_chunks()))


def _whole(found: Sequence[tuple[ChunkId, int]], rows: Mapping[ChunkKey, ChunkRow]) -> set[ChunkKey]:
    """Return the chunks whose parts are all there, judged by their lengths. Every load verifies the bytes."""
    sizes: dict[ChunkKey, int] = {}
    for chunk, size in found:
        sizes[chunk.key] = sizes.get(chunk.key, 0) + size
    return {key for key, size in sizes.items() if key in rows and rows[key].size_bytes == size}


def sweep(
    tier: DurableTier, found: Iterable[tuple[ChunkId, int]], rows: Mapping[ChunkKey, ChunkRow], claims: Claims
) -> Swept:
    """Remove those of `found` that no row needs. No freeze of this engine may be under way. Another engine's may."""
    removed = n_bytes = 0
    for chunk, size in found:
        deleted = False
        for claim in _unneeded_claims(tier, chunk, rows.get(chunk.key), claims):
            deleted = tier.delete(chunk, claim) or deleted
        if deleted:
            removed += 1
            n_bytes += size
    return Swept(removed, n_bytes)


def _unneeded_claims(tier: DurableTier, chunk: ChunkId, row: ChunkRow | None, claims: Claims) -> list[Claim]:
    """Return the claims on a part that neither its row nor a running freeze needs."""
    if not tier.shared:
        return [NO_CLAIM] if row is None else []
    now, recorded = now_micros(), None if row is None else row.claim
    return [each for each in tier.claims_of(chunk) if each != recorded and claims.is_abandoned(each, now)]

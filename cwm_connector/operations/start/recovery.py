"""Recovery of a home: brings the tiers and the catalog into agreement, page by page, while the engine may serve.

A chunk row is written after its bytes are durable, and removed before they are deleted. So after a kill at any instant
a tier can only hold more than the catalog knows: half-written leftovers and chunks of freezes that were never
acknowledged. Both are removed. Each chunk's location is recorded from what the tiers really have. A copy that is
missing or has another length no longer counts. A row without any copy is reported and kept: a thaw of its window says
that the chunk is missing, and the next freeze of the same tokens stores it again.

A list of what a tier has is older than the rows that it is compared with. So each difference is looked at again while
nothing can write, move or remove chunks.

Catalog thread; blocks on the disk and on Redis.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cwm_connector.catalog.base import Catalog, ChunkRow
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, TierName, now_micros
from cwm_connector.operations.claims import Claims
from cwm_connector.tiers.base import ChunkId, DurableTier

logger = logging.getLogger(__name__)
PAGE: Final = 256
"""Chunks that one step compares. It takes about 5 ms."""


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


@dataclass(slots=True)
class Found:
    """The content of a tier: the bytes of each chunk over all ranks, and the ranks."""

    leftovers: int = 0
    sizes: dict[ChunkKey, int] = field(default_factory=dict)
    ranks: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Slow:
    """Work that takes long and uses no catalog. With `locked` nothing may write chunks meanwhile."""

    work: Callable[[], Found]
    locked: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """A change of a tier that a step has recorded."""

    tier: TierName
    came: Sequence[ChunkKey]
    went: Sequence[ChunkKey]


@dataclass(frozen=True, slots=True)
class Compared:
    """The tier's part is done, or the tier can't be asked and stays as it is recorded."""

    tier: TierName


Step = Slow | Changed | Compared
Steps = Generator[Step, Found | None, Recovered]


def recovery(catalog: Catalog, durable_tiers: Iterable[DurableTier], claims: Claims, ranks: int) -> Steps:
    """Yield after each step, and return the counts. Run it once in the life of an engine.

    The caller holds the home's lock, and the engine's `chunk_lock` during each step. It does the work of a `Slow`, and
    sends the result or throws the error. A tier that can't be asked (a Redis that is away) is left as it is recorded.
    Raises: what the catalog raises.
    """
    try:
        catalog.sweep_unreferenced()
    except CWMError as problem:
        if not problem.retryable:
            raise
        logger.warning("chunks without references stay until the next `cwm gc`: %s", problem)
    leftovers = orphans = 0
    damaged: set[ChunkKey] = set()
    for tier in durable_tiers:
        comparison = _Comparison(catalog, tier, claims, ranks, damaged)
        try:
            yield from comparison.steps()
        except CWMError as problem:
            if problem.code is Code.CORRUPT:
                raise
            logger.warning("the %s tier is left as it was: %s", tier.name.value, problem)
        leftovers += comparison.leftovers
        orphans += comparison.orphans
        yield Compared(tier.name)
    return Recovered(leftovers, orphans, len(damaged))


class _Comparison:
    """Compares one tier with the rows."""

    def __init__(self, catalog: Catalog, tier: DurableTier, claims: Claims, ranks: int, damaged: set[ChunkKey]) -> None:
        self._catalog = catalog
        self._tier = tier
        self._claims = claims
        self._ranks = range(ranks)
        self._damaged = damaged
        self.leftovers = self.orphans = 0

    def steps(self) -> Generator[Step, Found | None, None]:
        swept = yield Slow(lambda: Found(leftovers=self._tier.sweep_leftovers()), locked=True)
        found = yield Slow(self._list, locked=False)
        assert swept is not None and found is not None  # the caller sends what a Slow returns
        self.leftovers = swept.leftovers
        unknown = set(found.sizes)
        last = None
        while rows := self._catalog.chunks_after(last, PAGE):
            last = rows[-1].key
            unknown.difference_update(row.key for row in rows)
            yield self._compare(rows, found)
        # A shared tier is looked through for claims of ours that nobody needs any more.
        keys = sorted(found.sizes if self._tier.shared else unknown)
        for begin in range(0, len(keys), PAGE):
            self.orphans += self._remove_orphans(keys[begin : begin + PAGE], found)
            yield Changed(self._tier.name, (), ())

    def _list(self) -> Found:
        found = Found()
        for chunk, size in self._tier.inventory():
            found.sizes[chunk.key] = found.sizes.get(chunk.key, 0) + size
            found.ranks.add(chunk.kv_rank)
        return found

    def _compare(self, rows: Sequence[ChunkRow], found: Found) -> Changed:
        """Record what differs. A copy is judged by its length, and every load verifies the bytes."""
        name = self._tier.name
        came: list[ChunkKey] = []
        went: list[ChunkKey] = []
        for row in rows:
            recorded = name in row.tiers
            if recorded != (found.sizes.get(row.key) == row.size_bytes):
                whole = stored_bytes(self._tier, row.key, self._ranks) == row.size_bytes
                if whole != recorded:
                    (came if whole else went).append(row.key)
                    recorded = whole
            (self._damaged.discard if recorded or row.tiers - {name} else self._damaged.add)(row.key)
        if came:
            self._tier.sync()  # a killed process may have written what it never made durable
        if came or went:
            self._catalog.place(name, came, went)
        return Changed(name, came, went)

    def _remove_orphans(self, keys: Sequence[ChunkKey], found: Found) -> int:
        if not self._catalog.is_durable():
            return 0
        parts = [(ChunkId(key, rank), 0) for key in keys for rank in sorted(found.ranks)]
        return sweep(self._tier, parts, self._catalog.stored(keys), self._claims).chunks


def stored_bytes(tier: DurableTier, key: ChunkKey, ranks: Iterable[int]) -> int:
    """Return how many bytes of the chunk the tier has, over all ranks. Raises: what the tier raises."""
    return sum(tier.size_of(ChunkId(key, rank)) or 0 for rank in ranks)


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

"""Where every chunk lies right now: in CPU memory as the workers last told, in durable tiers as the catalog records.

CPU memory's part is written by the engine thread, the durable tiers' by the control thread; any thread may read. A
stale answer costs a slower read, never a wrong byte. What the engine thread learns about durable copies (used, found
bad) waits here for the tiering, which alone writes it down.
"""

import queue
from collections.abc import Collection, Iterable
from typing import Final, TypeVar

from cwm_connector.catalog.base import ChunkRow
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.tiers.base import ChunkId

T = TypeVar("T")

DURABLE: Final = (TierName.DISK, TierName.REDIS)
"""Fastest first."""


class ChunkLocations:
    """A chunk counts as in a tier once every rank has its part there."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._ranks: dict[ChunkKey, frozenset[int]] = {}
        self._durable: dict[TierName, set[ChunkKey]] = {tier: set() for tier in DURABLE}
        self._uses: queue.SimpleQueue[ChunkKey] = queue.SimpleQueue()
        self._bad: queue.SimpleQueue[tuple[ChunkKey, TierName]] = queue.SimpleQueue()

    # --- the engine thread ---

    def update(self, came: Iterable[ChunkId], went: Iterable[ChunkId]) -> None:
        """CPU memory's changes. A chunk that came and went between two reports counts as gone."""
        for chunk in came:
            self._ranks[chunk.key] = self._ranks.get(chunk.key, frozenset()) | {chunk.kv_rank}
        for chunk in went:
            left = self._ranks.pop(chunk.key, frozenset()) - {chunk.kv_rank}
            if left:
                self._ranks[chunk.key] = left

    def saw_use(self, key: ChunkKey) -> None:
        self._uses.put(key)

    def saw_bad(self, key: ChunkKey, tier: TierName) -> None:
        """A load found the tier's copy missing or corrupt; without effect where none was recorded."""
        if key in self._durable[tier]:
            self._bad.put((key, tier))

    # --- the control thread ---

    def record(self, tier: TierName, came: Iterable[ChunkKey], went: Iterable[ChunkKey] = ()) -> None:
        """A durable tier's changes, once the catalog has them."""
        self._durable[tier].update(came)
        self._durable[tier].difference_update(went)

    def load_from_catalog(self, rows: Iterable[ChunkRow]) -> None:
        """Takes over what the catalog has of chunks that no durable tier is known to hold; another engine's, perhaps.

        Any thread.
        """
        for row in rows:
            if not any(row.key in chunks for chunks in self._durable.values()):
                for tier in row.tiers:
                    self._durable[tier].add(row.key)

    def take_uses(self) -> list[ChunkKey]:
        """Chunks that were loaded since the last call."""
        return _drained(self._uses)

    def take_bad(self) -> list[tuple[ChunkKey, TierName]]:
        """Copies that were found bad since the last call."""
        return _drained(self._bad)

    # --- any thread ---

    def holds(self, tier: TierName, key: ChunkKey) -> bool:
        if tier is TierName.CPU:
            return len(self._ranks.get(key, ())) == self._world_size
        return key in self._durable[tier]

    def fastest(self, key: ChunkKey) -> TierName | None:
        """Where a load would read the chunk; None if no tier is known to have it."""
        return next((tier for tier in TierName if self.holds(tier, key)), None)

    def in_memory(self) -> list[ChunkKey]:
        """The chunks that are in CPU memory."""
        return [key for key in list(self._ranks) if self.holds(TierName.CPU, key)]

    def tiers_of(self, keys: Collection[ChunkKey]) -> dict[str, int]:
        """How many of `keys` each tier holds; a chunk can be in several. Tiers with none are left out."""
        held = {TierName.CPU.value: sum(self.holds(TierName.CPU, key) for key in keys)}
        held |= {tier.value: sum(key in chunks for key in keys) for tier, chunks in self._durable.items()}
        return {tier: count for tier, count in held.items() if count}


def _drained(waiting: "queue.SimpleQueue[T]") -> list[T]:
    return [waiting.get() for _ in range(waiting.qsize())]

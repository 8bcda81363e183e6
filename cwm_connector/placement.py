"""Which chunks are in CPU memory right now, as the workers last told.

Written by the engine thread; read by any: a stale answer costs a disk read, never a wrong byte. Every acknowledged
chunk is on disk as well, so what is not here is there.
"""

from collections.abc import Iterable, Sequence

from cwm_connector.terms import ChunkKey, TierName
from cwm_connector.tiers.base import (
    ChunkId,
)


class CpuPlacement:
    """A chunk counts as in CPU memory once every rank has its part there."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._ranks: dict[ChunkKey, frozenset[int]] = {}

    def update(self, came: Iterable[ChunkId], went: Iterable[ChunkId]) -> None:
        """A chunk that came and went between two reports counts as gone."""
        for chunk in came:
            self._ranks[chunk.key] = self._ranks.get(chunk.key, frozenset()) | {chunk.kv_rank}
        for chunk in went:
            left = self._ranks.pop(chunk.key, frozenset()) - {chunk.kv_rank}
            if left:
                self._ranks[chunk.key] = left

    def holds(self, key: ChunkKey) -> bool:
        return len(self._ranks.get(key, ())) == self._world_size

    def fastest(self, key: ChunkKey) -> TierName:
        """Where a load would read an acknowledged chunk."""
        return TierName.CPU if self.holds(key) else TierName.DISK

    def keys(self) -> list[ChunkKey]:
        """The chunks that are in CPU memory now."""
        return [key for key in list(self._ranks) if self.holds(key)]

    def count(self) -> int:
        return len(self.keys())

    def tiers_of(self, keys: Sequence[ChunkKey]) -> dict[str, int]:
        """How many of the acknowledged chunks `keys` each tier holds; the disk holds them all."""
        held = {TierName.CPU.value: sum(self.holds(key) for key in keys), TierName.DISK.value: len(keys)}
        return {tier: count for tier, count in held.items() if count}

"""The blocks that saves keep in vLLM's cache until every rank has read them. Engine thread only.

chunks of a save    | 0 | 1 | 2 | 3 | 4 | 5 |
pinned              |<----------->|             captured from the end, so vLLM gets the end back first
captured                          |<-------->|
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from cwm_connector import compat

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

FREED_AT_ONCE: Final = 512
"""Blocks. It takes about a tenth of a millisecond. The others follow in the next steps."""
STALL_S: Final = 1.0
"""vLLM is not told to wait for a save that has released nothing for so long, as one may that waits for a slow disk."""


class PinnedBlocks:
    """The pinned blocks of all saves."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._saves: list[PinnedSave] = []
        self._released: deque[tuple[BlockPool, Sequence[KVCacheBlock]]] = deque()
        """What no save pins any more and vLLM does not have back yet, the end of a sequence first."""

    def pin(self, pool: "BlockPool", chunks: "Sequence[Sequence[KVCacheBlock]]") -> "PinnedSave":
        """Pin the blocks of a save, in the order of its chunks."""
        save = PinnedSave(pool, chunks, self._saves, self._released, self._clock)
        compat.pin_blocks(pool, [block for blocks in chunks for block in blocks])
        save.planned()
        return save

    def begin(self, pool: "BlockPool") -> "PinnedSave":
        """Return a save whose chunks are pinned one by one, with `PinnedSave.pin_before`."""
        return PinnedSave(pool, (), self._saves, self._released, self._clock)

    @property
    def is_freeing(self) -> bool:
        """Return whether released blocks wait for the next step."""
        return bool(self._released)

    def free_some(self) -> None:
        """Give some of the released blocks back to vLLM. Called once a step."""
        _free_some(self._released)

    def frees_some_soon(self) -> bool:
        """Return whether a save is about to give blocks back that nobody else holds."""
        return self.is_freeing or any(save.frees_some_soon() for save in self._saves)


class PinnedSave:
    """The pinned blocks of one save."""

    def __init__(
        self,
        pool: "BlockPool",
        chunks: "Sequence[Sequence[KVCacheBlock]]",
        saves: "list[PinnedSave]",
        released: "deque[tuple[BlockPool, Sequence[KVCacheBlock]]]",
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._chunks = list(chunks)
        self._total = len(chunks)
        self._saves = saves
        self._released = released
        self._clock = clock
        self._released_at = float("-inf")

    @property
    def block_ids(self) -> tuple[int, ...]:
        """Return the ids of the pinned blocks."""
        return tuple(block.block_id for blocks in self._chunks for block in blocks)

    def pin_before(self, blocks: "Sequence[KVCacheBlock]") -> None:
        """Pin the chunk before those that are pinned."""
        compat.pin_blocks(self._pool, blocks)
        self._chunks.insert(0, blocks)
        self._total += 1

    def planned(self) -> None:
        """Record that all chunks are pinned and that they are copied now."""
        self._released_at = self._clock()
        self._saves.append(self)

    def release(self, captured: int) -> None:
        """Let go of the last `captured` chunks, as far as that has not happened yet."""
        kept = max(0, self._total - captured)
        done = self._chunks[kept:]
        if not done:
            return
        del self._chunks[kept:]
        self._released_at = self._clock()
        if not self._chunks and self in self._saves:
            self._saves.remove(self)
        self._released.extend((self._pool, blocks) for blocks in reversed(done))
        _free_some(self._released)

    def release_all(self) -> None:
        """Let go of every block."""
        self.release(self._total)

    def frees_some_soon(self) -> bool:
        """Return whether the chunk that is released next has a block that only this save holds."""
        if not self._chunks or self._clock() - self._released_at >= STALL_S:
            return False
        return any(compat.is_held_once(block) for block in self._chunks[-1])


def _free_some(released: "deque[tuple[BlockPool, Sequence[KVCacheBlock]]]") -> None:
    freed = 0
    while released and freed < FREED_AT_ONCE:
        pool, blocks = released.popleft()
        compat.unpin_blocks(pool, blocks)
        freed += len(blocks)

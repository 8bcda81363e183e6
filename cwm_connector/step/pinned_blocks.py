"""The blocks that saves keep in vLLM's cache until every rank has read them. Engine thread only.

chunks of a save    | 0 | 1 | 2 | 3 | 4 | 5 |
pinned              |<----------->|             captured from the end, so vLLM gets the end back first
captured                          |<-------->|
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from cwm_connector import compat

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

STALL_S: Final = 1.0
"""vLLM is not told to wait for a save that has released nothing for so long, as one may that waits for a slow disk."""


class PinnedBlocks:
    """The pinned blocks of all saves."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._saves: list[PinnedSave] = []

    def pin(self, pool: "BlockPool", chunks: "Sequence[Sequence[KVCacheBlock]]") -> "PinnedSave":
        """Pin the blocks of a save, in the order of its chunks."""
        save = PinnedSave(pool, chunks, self._saves, self._clock)
        self._saves.append(save)
        return save

    def frees_some_soon(self) -> bool:
        """Return whether a save is about to give blocks back that nobody else holds."""
        return any(save.frees_some_soon() for save in self._saves)


class PinnedSave:
    """The pinned blocks of one save."""

    def __init__(
        self,
        pool: "BlockPool",
        chunks: "Sequence[Sequence[KVCacheBlock]]",
        saves: "list[PinnedSave]",
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._chunks = list(chunks)
        self._total = len(chunks)
        self._saves = saves
        self._clock = clock
        self._released_at = clock()
        compat.pin_blocks(pool, [block for blocks in chunks for block in blocks])

    def release(self, captured: int) -> None:
        """Let go of the last `captured` chunks, as far as that has not happened yet."""
        kept = max(0, self._total - captured)
        done = self._chunks[kept:]
        if not done:
            return
        del self._chunks[kept:]
        self._released_at = self._clock()
        if not self._chunks:
            self._saves.remove(self)
        compat.unpin_blocks(self._pool, [block for blocks in done for block in blocks])

    def release_all(self) -> None:
        """Let go of every block."""
        self.release(self._total)

    def frees_some_soon(self) -> bool:
        """Return whether the chunk that is released next has a block that only this save holds."""
        if self._clock() - self._released_at >= STALL_S:
            return False
        return any(compat.is_held_once(block) for block in self._chunks[-1])

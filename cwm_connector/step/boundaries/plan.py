"""Plan the save of a model that can be resumed at boundaries alone. Engine thread; nothing here blocks.

vLLM itself says which blocks of which group a resume needs. One look-up goes over all block hashes of a session, as
vLLM does for each of its requests. The blocks that it found are pinned over several steps, and vLLM may reuse one of
them in between, so each must still have the hash that it had.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cwm_connector import compat
from cwm_connector.core.identity import ChunkSpec, Geometry
from cwm_connector.step.job_board import JobBoard
from cwm_connector.step.jobs import ChunkBlocks
from cwm_connector.step.pinned_blocks import PinnedBlocks, PinnedSave
from cwm_connector.step.save_plan import SaveOrder, SavePlan, post_save

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request


class BoundaryPlanner:
    """Finds and pins the blocks of boundaries in one engine's cache."""

    def __init__(self, geometry: Geometry, hash_tokens: int, pool: "BlockPool", coordinator: "KVCacheCoordinator"):
        self._geometry = geometry
        self._hash_tokens = hash_tokens
        self._pool = pool
        self._coordinator = coordinator

    def boundary(self, hashes: Sequence[bytes], limit_block: int | None = None) -> compat.CachedBoundary:
        """Return the last boundary, up to a block, at which vLLM could resume the tokens with these hashes now."""
        size = self._geometry.block_tokens
        blocks = len(hashes) * self._hash_tokens // size
        limit = blocks if limit_block is None else min(blocks, limit_block)
        return compat.cached_boundary(self._coordinator, hashes, limit * size)

    def plan(
        self, pinned: PinnedBlocks, board: JobBoard, hashes: Sequence[bytes], order: SaveOrder
    ) -> Iterator[Sequence[SavePlan]]:
        """Find and pin the blocks of the order's chunks, then post the save. The last part is the plan.

        If some are lost, nothing is pinned in the end, and the plan says at which boundary vLLM could resume.
        """
        last = self.boundary(hashes)
        at = last.tokens // self._geometry.block_tokens
        found = {at: last}
        for end in {chunk.end_block for chunk in order.chunks if self._is_tail(chunk)}:
            if end < at:
                found[end] = self.boundary(hashes, end)
        save = pinned.begin(self._pool)
        try:
            parts: list[ChunkBlocks] = []
            wanted = [(chunk, self._blocks(chunk, found, at)) for chunk in order.chunks]
            expected = [[block.block_hash for block in blocks] for _, blocks in wanted]
            for (chunk, blocks), before in zip(reversed(wanted), reversed(expected), strict=True):
                if len(blocks) < chunk.page_count or [block.block_hash for block in blocks] != before:
                    save.release_all()
                    yield [SavePlan(ticket=None, lost_blocks=chunk.page_count, boundary=at)]
                    return
                save.pin_before(blocks)
                parts.append(ChunkBlocks(chunk, tuple(block.block_id for block in blocks)))
                yield ()
        except BaseException:
            save.release_all()
            raise
        yield [SavePlan(post_save(board, save, order, parts))]

    def pin_prompt(self, pinned: PinnedBlocks, request: "Request") -> tuple[PinnedSave, tuple[int, ...]]:
        """Pin all that a resume at the end of a prompt needs, while the request still holds it.

        Return the blocks, and how many each group has.
        """
        limit = (request.num_prompt_tokens - 1) // self._geometry.block_tokens
        found = self.boundary(request.block_hashes, limit)
        groups = [[[block] for block in of_group if not block.is_null] for of_group in found.blocks]
        return pinned.pin(self._pool, [block for blocks in groups for block in blocks]), tuple(map(len, groups))

    def last_blocks(self, hashes: Sequence[bytes]) -> "Sequence[KVCacheBlock]":
        """Return the blocks of the last boundary, of the groups with full attention only the last ones."""
        found = self.boundary(hashes)
        full = self._geometry.full_groups
        parts = [blocks[-1:] if group in full else blocks for group, blocks in enumerate(found.blocks)]
        return [block for blocks in parts for block in blocks if not block.is_null] if found.tokens else ()

    def _is_tail(self, chunk: ChunkSpec) -> bool:
        return chunk.group not in self._geometry.full_groups

    def _blocks(self, chunk: ChunkSpec, found: dict[int, compat.CachedBoundary], at: int) -> "list[KVCacheBlock]":
        """Return the blocks of the chunk, or fewer if vLLM does not have all of them."""
        boundary = found.get(chunk.end_block if self._is_tail(chunk) else at)
        end = self._geometry.pages_of(chunk.group, chunk.end_block)
        if boundary is None or boundary.tokens < chunk.end_block * self._geometry.block_tokens:
            return []
        return [block for block in boundary.blocks[chunk.group][end - chunk.page_count : end] if not block.is_null]

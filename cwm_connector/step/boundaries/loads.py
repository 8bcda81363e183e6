"""Which chunks fill a request's blocks up to a boundary of a window, in every KV cache group. Engine thread only.

vLLM gives the request blocks for the tokens that it is about to get, and only where a group needs them: null blocks
stand before a sliding window and before a state.

    pages of a group     | 0 | 1 | 2 | 3 | 4 | 5 |
    full attention       | x   x | n   n   n   n |        x: found in vLLM's own cache
    sliding window       | -   - | -   - | n   n |        n: loaded    -: null
    state                | -   - | -   -   - | n |
                                 from            boundary
"""

from collections.abc import Sequence
from typing import Final, overload

from cwm_connector.core.identity import ChunkSpec, Geometry
from cwm_connector.step.jobs import ChunkBlocks
from cwm_connector.step.window_matches import Match

NULL_BLOCK: Final = 0
"""vLLM's id of the block that stands where a group needs none."""


class BoundaryRun(Sequence[ChunkBlocks]):
    """The parts of a window's chunks that a request loads. All of them, or none, are of use to it."""

    def __init__(self, geometry: Geometry, match: Match, ids: Sequence[Sequence[int]]) -> None:
        """Take the match and the request's blocks by group, from its block 0.

        Raises ValueError unless the chunks fill exactly the blocks that vLLM has allocated for the load.
        """
        self._match = match
        self._parts: list[ChunkBlocks] = []
        for chunk in match.window.chunks:
            if match.from_block < chunk.end_block <= match.to_block:
                self._add(geometry, chunk, ids[chunk.group])
        self._check(geometry, ids)

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, at: int) -> ChunkBlocks: ...

    @overload
    def __getitem__(self, at: slice) -> list[ChunkBlocks]: ...

    def __getitem__(self, at: int | slice) -> ChunkBlocks | list[ChunkBlocks]:
        return self._parts[at]

    @property
    def specs(self) -> list[ChunkSpec]:
        """Return the chunk of each part."""
        return [part.chunk for part in self._parts]

    def block_counts(self) -> list[int]:
        """Return how many blocks of the request each part adds to those before it."""
        start, end = self._match.from_block, self._match.to_block
        return [max(0, min(chunk.end_block, end) - max(chunk.first_block, start)) for chunk in self.specs]

    def _add(self, geometry: Geometry, chunk: ChunkSpec, ids: Sequence[int]) -> None:
        """Add the pages of the chunk that vLLM has not found itself. A tail of another boundary is of no use."""
        is_tail = chunk.group not in geometry.full_groups
        if is_tail and chunk.end_block != self._match.to_block:
            return
        end = geometry.pages_of(chunk.group, chunk.end_block)
        first = end - chunk.page_count
        start = max(first, geometry.pages_of(chunk.group, self._match.from_block))
        if start < end:
            self._parts.append(ChunkBlocks(chunk, tuple(ids[start:end]), start - first))

    def _check(self, geometry: Geometry, ids: Sequence[Sequence[int]]) -> None:
        for group, of_group in enumerate(ids):
            start = geometry.pages_of(group, self._match.from_block)
            end = geometry.pages_of(group, self._match.to_block)
            wanted = [block for block in of_group[start:end] if block != NULL_BLOCK]
            filled = [block for part in self._parts if part.chunk.group == group for block in part.block_ids]
            if sorted(wanted) != sorted(filled):
                raise ValueError(f"group {group} wants blocks {wanted}, and the window fills {filled}")

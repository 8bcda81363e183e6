"""The KV cache groups of a model that mixes kinds of attention, and how many of vLLM's blocks each resume needs.

A **page** is one of vLLM's blocks in one group. A **boundary** is a position at which vLLM can resume such a model: a
whole number of blocks of the geometry, at which every group has all that the next token needs.

    full      every page of [0, boundary)
    window    the pages of the last tokens before the boundary, as many as the sliding window reaches back to
    local     the pages from the beginning of the attention chunk that the boundary lies in
    state     one page, with the state after the last token before the boundary (Mamba, gated delta net)

Pure functions for any thread. Nothing here blocks.
"""

import enum
from dataclasses import dataclass


class GroupKind(enum.StrEnum):
    """The kinds of what the layers of a group keep."""

    FULL = "full"
    WINDOW = "window"
    LOCAL = "local"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """One KV cache group of vLLM. Its place in `Geometry.groups` is vLLM's own id of the group."""

    kind: GroupKind
    page_tokens: int
    """Tokens in each page."""
    reach: int = 0
    """Tokens of a sliding window, or of a local attention chunk."""

    def pages_at(self, boundary: int) -> int:
        """Return how many pages before the token `boundary` a resume there needs, in a group that is not `FULL`."""
        pages = boundary // self.page_tokens
        if self.kind is GroupKind.WINDOW:
            return min(pages, -(-(self.reach - 1) // self.page_tokens))
        if self.kind is GroupKind.LOCAL:
            return pages - boundary // self.reach * self.reach // self.page_tokens
        return min(pages, 1)


@dataclass(frozen=True, slots=True)
class HeadShape:
    """The model's KV heads, and how a rank's pages hold them. A rank keeps some of the heads, or a copy of one.

    2 heads on 1 rank      rank 0: head 0, head 1
    2 heads on 2 ranks     rank 0: head 0          rank 1: head 1
    2 heads on 4 ranks     rank 0: head 0          rank 1: head 0          rank 2: head 1          rank 3: head 1
    """

    heads: int
    """Of the whole model, in each layer."""
    layers: int
    block_tokens: int
    cell_bytes: int
    """The key and the value of one token in one head."""
    tokens_first: bool
    """A page holds one token after another, each with all heads. Otherwise one head after another, with all tokens."""

    def can_be_on(self, ranks: int) -> bool:
        """Return whether so many ranks can share the heads evenly."""
        return ranks > 0 and (self.heads % ranks == 0 or ranks % self.heads == 0)

    def heads_on(self, rank: int, ranks: int) -> range:
        """Return the heads of one of so many ranks."""
        if ranks >= self.heads:
            head = rank // (ranks // self.heads)
            return range(head, head + 1)
        each = self.heads // ranks
        return range(rank * each, (rank + 1) * each)

    def payload_bytes(self, blocks: int, ranks: int) -> int:
        """Return the bytes of so many blocks on one of so many ranks."""
        return blocks * self.layers * self.block_tokens * self.cell_bytes * len(self.heads_on(0, ranks))

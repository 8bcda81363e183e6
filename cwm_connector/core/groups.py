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

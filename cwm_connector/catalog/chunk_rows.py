"""The chunks that a catalog records, and what a deletion returns of them. `base.py` exports both.

Values, for any thread.
"""

from dataclasses import dataclass
from typing import Final

from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, TierName

DISK_ALONE: Final = frozenset({TierName.DISK})


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A stored chunk."""

    key: ChunkKey
    tokens: int
    size_bytes: int
    """Bytes that the files of all ranks take on disk, with headers and padding."""
    tiers: frozenset[TierName] = DISK_ALONE
    """The durable tiers that hold all ranks' parts. If empty, no good copy is known and a freeze stores it again."""
    claim: Claim = NO_CLAIM
    """The claim with which the bytes were written. See core/types.py."""


@dataclass(frozen=True, slots=True)
class DeletedWindow:
    """The result of a deletion."""

    orphans: tuple[ChunkRow, ...]
    """Chunks whose last reference and row are gone. Their bytes may now be removed."""
    shared: int
    """Chunks of the window that other windows still refer to."""

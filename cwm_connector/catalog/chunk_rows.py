"""Small values of a catalog: the chunks that it records, what a deletion returns, and where a window came from.

`base.py` exports them.

Values, for any thread.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, Micros, TierName

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


class Origin(msgspec.Struct, frozen=True):
    """Where an imported window came from. Its clones came from there too."""

    exported_as: str
    """The window's name where it was exported."""
    frozen_from: str
    """The session that it was frozen from there."""
    frozen_at: Micros
    ranks: int | None = None
    """The ranks that computed the KV, if the import has divided it over others."""

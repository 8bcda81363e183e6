"""What a start does before anything else: the store is made to hold exactly what the catalog says, and no more.

A chunk row is written after its bytes are durable, and removed before they are deleted. So after a kill at any instant
the disk can only hold more than the catalog knows: half-written leftovers and chunks of freezes that were never
acknowledged. Both go. A row whose file is gone or has another length (somebody else's doing) is reported, not removed:
its window says so when it is thawed.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from cwm_connector.catalog.base import Catalog
from cwm_connector.protocol import Code, CWMError
from cwm_connector.tiers.base import ChunkStore

_STORE_ID = "store.id"


@dataclass(frozen=True, slots=True)
class Recovered:
    """`damaged` counts chunks whose files are missing or have another length than was written."""

    leftovers: int
    orphans: int
    damaged: int


def pair_store(home: Path, chunks: Path) -> None:
    """Marks the chunk folder as this catalog's own, so that no other catalog ever sweeps it.

    Raises: CWM-1003 if the folder belongs to another catalog.
    """
    mine, theirs = home / _STORE_ID, chunks / _STORE_ID
    if not mine.exists():
        mine.write_text(theirs.read_text() if theirs.exists() and home == chunks.parent else secrets.token_hex(16))
    if not theirs.exists():
        theirs.write_text(mine.read_text())
    if theirs.read_text() != mine.read_text():
        raise CWMError(
            Code.ARGUMENT,
            f"CWM_DISK_PATH names {chunks}, which holds the chunks of another CWM_HOME; choose another folder",
        )


def recover(catalog: Catalog, disk: ChunkStore, world_size: int) -> Recovered:
    """Runs once, on the catalog thread, while no job is under way and the store's lock is held."""
    leftovers = disk.sweep_leftovers()
    catalog.sweep_unreferenced()
    sizes = dict.fromkeys((row.key for row in catalog.all_chunks()), 0)
    ranks = dict.fromkeys(sizes, 0)
    orphans = 0
    for chunk, size in list(disk.inventory()):
        if chunk.key in sizes:
            sizes[chunk.key] += size
            ranks[chunk.key] += 1
        else:
            orphans += disk.delete(chunk)
    damaged = sum(sizes[row.key] != row.size_bytes or ranks[row.key] < world_size for row in catalog.all_chunks())
    return Recovered(leftovers, orphans, damaged)

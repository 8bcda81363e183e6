"""What the tests of the disk tier share: tiers that are closed, and what lies in their folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cwm_connector.tiers.base import DurableTier
from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.tiers.chunks import SealedChunk, put


@contextmanager
def opened(folder: Path, timeout_s: float = 60) -> Iterator[DiskTier]:
    tier = DiskTier(folder, timeout_s=timeout_s)
    try:
        yield tier
    finally:
        tier.close()


def put_and_sync(tier: DurableTier, *chunks: SealedChunk) -> None:
    put(tier, *chunks)
    tier.sync()


def names(folder: Path) -> set[str]:
    """Every file below the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def file_of(chunk: SealedChunk) -> str:
    return f"cwm@0x{chunk.header.kv_rank:08x}@0@{chunk.header.key.hex()}.data"

"""recovery.py: after a start the disk holds what the catalog says, and another catalog's chunks are never touched."""

from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.catalog.base import (
    ChunkRow,
    NewWindow,
)
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.core.types import ChunkKey, Micros, TierName
from cwm_connector.operations.claims import Claims
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import ChunkHeader, seal, sealed_bytes
from cwm_connector.tiers.disk.tier import DiskTier
from tests.support.recovery import recover

SIZE = sealed_bytes(8192)
MINE = Claims("mine", shared=False, since=Micros(0))


def key(number: int) -> ChunkKey:
    return ChunkKey(bytes([number]) * 32)


def put(disk: DiskTier, number: int, rank: int = 0) -> None:
    import torch

    buffer = torch.zeros(SIZE + 4096, dtype=torch.uint8).numpy()
    start = -buffer.ctypes.data % 4096
    view = memoryview(buffer[start : start + SIZE])
    seal(view, ChunkHeader(key(number), rank, 16, 1, 8192, bytes(32)))
    disk.write(ChunkId(key(number), rank), view).result()
    disk.sync()


def window(name: str, *numbers: int) -> NewWindow:
    return NewWindow(
        name=name,
        description="",
        tags=(),
        model="m",
        passport={"weights": "w"},
        session_id="s",
        head="h1",
        parent=None,
        token_ids=array("i", range(16 * len(numbers))).tobytes(),
        restorable_tokens=16 * len(numbers),
        chunks=[key(number) for number in numbers],
        stored=[ChunkRow(key(number), 16, SIZE) for number in numbers],
        created_at=Micros(1),
    )


@pytest.fixture
def store(tmp_path: Path):
    (tmp_path / "chunks").mkdir()
    disk = DiskTier(tmp_path / "chunks")
    catalog = SqliteCatalog.open(tmp_path / "catalog.sqlite")
    yield disk, catalog
    disk.close()
    catalog.close()


def test_unreferenced_chunks_are_swept_and_what_a_window_needs_stays(store) -> None:
    disk, catalog = store
    for number in (1, 2, 3):
        put(disk, number)
    catalog.commit_window(window("w", 1, 2))
    found = recover(catalog, [disk], MINE)
    assert (found.orphans, found.damaged) == (1, 0)
    assert {chunk.key for chunk, _ in disk.inventory()} == {key(1), key(2)}


def test_half_written_leftovers_are_swept(store, tmp_path: Path) -> None:
    disk, catalog = store
    folder = tmp_path / "chunks"
    (folder / ".tmp-0123456789abcdef0123456789abcdef").mkdir()
    (folder / ".tmp-0123456789abcdef0123456789abcdef" / "cwm-half").write_bytes(b"x")
    assert recover(catalog, [disk], MINE).leftovers >= 1
    assert not list(folder.glob(".tmp-*/cwm-half"))


def test_a_missing_or_cut_chunk_is_reported_and_its_window_kept(store) -> None:
    disk, catalog = store
    for number in (1, 2):
        put(disk, number)
    catalog.commit_window(window("w", 1, 2))
    disk.delete(ChunkId(key(1), 0))
    assert recover(catalog, [disk], MINE).damaged == 1
    assert catalog.window("w").block_count == 2


def test_a_chunk_without_one_rank_s_part_counts_as_damaged(store) -> None:
    disk, catalog = store
    put(disk, 1)
    put(disk, 2)
    put(disk, 2, rank=1)
    rows = [ChunkRow(key(number), 16, 2 * SIZE) for number in (1, 2)]
    catalog.commit_window(replace(window("w", 1, 2), stored=rows))
    assert recover(catalog, [disk], MINE, ranks=2).damaged == 1
    assert [bool(row.tiers) for row in catalog.chunks_of("w")] == [False, True]


def test_a_chunk_s_location_is_recorded_from_what_is_there(store) -> None:
    disk, catalog = store
    for number in (1, 2):
        put(disk, number)
    catalog.commit_window(window("w", 1, 2))
    catalog.place(TierName.DISK, came=[], went=[key(1)])
    disk.delete(ChunkId(key(2), 0))
    recover(catalog, [disk], MINE)
    assert [row.tiers for row in catalog.chunks_of("w")] == [{TierName.DISK}, set()]


def test_a_tier_that_cannot_be_asked_is_left_as_recorded(store, tmp_path: Path) -> None:
    disk, catalog = store
    put(disk, 1)
    catalog.commit_window(window("w", 1))
    (tmp_path / "chunks").rename(tmp_path / "away")
    assert recover(catalog, [disk], MINE).damaged == 0
    assert [row.tiers for row in catalog.chunks_of("w")] == [{TierName.DISK}]

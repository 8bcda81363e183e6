"""Damage to chunk files: whatever changed on the disk, the load is refused with CWM-4004 or CWM-2003, never served."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.tiers.chunk import HEADER_BYTES, check
from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.tiers.chunks import LAYOUT, SealedChunk, aligned_buffer, sealed_chunk

FLIPS_ANYWHERE = 3000
FLIPS_IN_FIELDS = 1500
FIELD_BYTES = 8 + 4 + 32 + 4 + 4 + 4 + 8 + 32 + 8
"""What the header says, checksum included; the rest of it is zeros."""


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    one = DiskTier(tmp_path)
    yield one
    one.close()


@pytest.fixture
def chunk(tier: DiskTier) -> SealedChunk:
    one = sealed_chunk(1, 3 * 4096 + 24)
    tier.write(one.id, one.buffer).result()
    return one


def path_of(folder: Path, chunk: SealedChunk) -> Path:
    return next(path for path in folder.iterdir() if chunk.header.key.hex() in path.name)


def fault_of(tier: DiskTier, chunk: SealedChunk, into: memoryview | None = None) -> Code | None:
    """How a load of the chunk ends; None if it would be served."""
    target = aligned_buffer(chunk.buffer.nbytes) if into is None else into
    try:
        tier.read(chunk.id, target).result()
        check(target, chunk.header)
    except CWMError as problem:
        return problem.code
    return None


@pytest.mark.parametrize(("flips", "within"), [(FLIPS_ANYWHERE, None), (FLIPS_IN_FIELDS, FIELD_BYTES)])
def test_every_flipped_bit_of_a_file_is_caught(
    tier: DiskTier, chunk: SealedChunk, tmp_path: Path, flips: int, within: int | None
) -> None:
    path, choose, target = path_of(tmp_path, chunk), random.Random(7), aligned_buffer(chunk.buffer.nbytes)
    with path.open("r+b", buffering=0) as file:
        for _ in range(flips):
            at, bit = choose.randrange(within or chunk.buffer.nbytes), 1 << choose.randrange(8)
            for _ in range(2):  # there and back
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ bit]))
                fault = fault_of(tier, chunk, target)
                expected = Code.CORRUPT if (byte ^ bit) != chunk.buffer[at] else None
                assert fault is expected, f"bit {bit} of byte {at}"


def test_a_file_cut_short_anywhere_is_caught(tier: DiskTier, chunk: SealedChunk, tmp_path: Path) -> None:
    path, whole = path_of(tmp_path, chunk), bytes(chunk.buffer)
    for length in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, *random.Random(3).sample(range(len(whole)), 200)]:
        path.write_bytes(whole[:length])
        assert fault_of(tier, chunk) is Code.CORRUPT, f"cut to {length} bytes"


def test_an_over_long_file_is_caught(tier: DiskTier, chunk: SealedChunk, tmp_path: Path) -> None:
    path, whole = path_of(tmp_path, chunk), bytes(chunk.buffer)
    for more in (1, 511, 4095, 4096, 100_000):
        path.write_bytes(whole + bytes(more))
        assert fault_of(tier, chunk) is Code.CORRUPT


def test_swapped_files_are_caught_under_both_names(tier: DiskTier, chunk: SealedChunk, tmp_path: Path) -> None:
    other = sealed_chunk(2, chunk.header.payload_bytes)
    tier.write(other.id, other.buffer).result()
    one, two = path_of(tmp_path, chunk), path_of(tmp_path, other)
    one.rename(tmp_path / "between")
    two.rename(one)
    (tmp_path / "between").rename(two)
    assert fault_of(tier, chunk) is fault_of(tier, other) is Code.CORRUPT


def test_another_rank_s_part_and_another_model_s_chunk_are_caught(
    tier: DiskTier, chunk: SealedChunk, tmp_path: Path
) -> None:
    path = path_of(tmp_path, chunk)
    path.write_bytes(sealed_chunk(1, chunk.header.payload_bytes, kv_rank=1).buffer)
    assert fault_of(tier, chunk) is Code.CORRUPT
    tier.write(chunk.id, chunk.buffer).result()
    elsewhere = SealedChunk(replace(chunk.header, layout=LAYOUT[::-1]), chunk.buffer)
    assert fault_of(tier, elsewhere) is Code.CORRUPT  # pages laid out as this engine's are not


def test_a_file_that_is_gone_is_told_as_that(tier: DiskTier, chunk: SealedChunk, tmp_path: Path) -> None:
    path_of(tmp_path, chunk).unlink()
    assert fault_of(tier, chunk) is Code.CHUNK_MISSING

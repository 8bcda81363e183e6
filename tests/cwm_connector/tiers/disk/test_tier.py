"""The disk tier on real file systems: bytes come back bit for bit, or a code says why not."""

import logging
import os
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.tiers.chunk import check
from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.tiers.chunks import (
    MIB,
    UNKNOWN,
    aligned_buffer,
    assert_reads_back,
    failure,
    sealed_chunk,
)
from tests.cwm_connector.tiers.disk.tiers import file_of, names, opened, put_and_sync
from tests.cwm_connector.tiers.mounts import mounted

# --- round trips ------------------------------------------------------------------------------------------------------


def test_chunks_come_back_bit_for_bit_also_in_another_process_later(folder: Path) -> None:
    chunks = [
        sealed_chunk(seed, size, rank) for seed, (size, rank) in enumerate([(1, 0), (MIB, 1), (3 * MIB, 2**32 - 1)])
    ]
    with opened(folder) as tier:
        put_and_sync(tier, *chunks)
        assert_reads_back(tier, *chunks)
    with opened(folder) as later:
        assert_reads_back(later, *chunks)
        assert dict(later.inventory()) == {chunk.id: chunk.buffer.nbytes for chunk in chunks}
        assert [later.size_of(chunk.id) for chunk in chunks] == [chunk.buffer.nbytes for chunk in chunks]
    assert names(folder) == {file_of(chunk) for chunk in chunks}


def test_bytes_pass_the_page_cache_by(tier: DiskTier, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunk = sealed_chunk(1, 4 * MIB)
    with caplog.at_level(logging.WARNING):
        put_and_sync(tier, chunk)
        before = _read_bytes_of_this_process()
        assert_reads_back(tier, chunk)
    if caplog.messages:
        pytest.skip(f"the file system of {folder} takes no direct I/O")
    assert _read_bytes_of_this_process() - before >= chunk.buffer.nbytes


def _read_bytes_of_this_process() -> int:
    """What was fetched from the device, not from the page cache."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def test_where_direct_io_is_refused_bytes_still_come_back_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = [sealed_chunk(seed, 100_000) for seed in range(8)]
    with mounted("ramfs", tmp_path / "mount") as folder:
        with opened(folder) as tier, caplog.at_level(logging.WARNING):
            put_and_sync(tier, *chunks)
            assert_reads_back(tier, *chunks)
        assert names(folder) == {file_of(chunk) for chunk in chunks}
    assert [message for message in caplog.messages if "direct I/O" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_writing_again_replaces(tier: DiskTier, folder: Path) -> None:
    old, new = sealed_chunk(1, MIB), sealed_chunk(2, 2 * MIB)
    put_and_sync(tier, old)
    tier.write(old.id, new.buffer).result()
    target = aligned_buffer(new.buffer.nbytes)
    tier.read(old.id, target).result()
    assert target == new.buffer
    assert names(folder) - {file_of(old)} == set()


def test_bytes_are_on_the_device_before_the_chunk_has_its_name(
    tier: DiskTier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = sealed_chunk(1, MIB)
    synced: list[tuple[str, bool]] = []
    real_fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), (folder / file_of(chunk)).exists()))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    put_and_sync(tier, chunk)
    (staged, named), last = synced
    assert (Path(staged).parent.parent, named) == (folder, False)
    assert last == (str(folder), True)


def test_two_writers_of_one_chunk_leave_one_whole_file(folder: Path) -> None:
    one, other = sealed_chunk(1, MIB), sealed_chunk(2, 2 * MIB)
    with opened(folder) as first, opened(folder) as second:
        for _ in range(20):
            writes = [
                first.write(one.id, one.buffer),
                second.write(one.id, other.buffer),
                first.write(one.id, one.buffer),
            ]
            for write in writes:
                write.result(timeout=30)
            content = (folder / file_of(one)).read_bytes()
            assert content in (one.buffer, other.buffer)
    assert names(folder) == {file_of(one)}


# --- bad reads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [-1, -4096, 1, 4096])
def test_a_file_of_another_length_is_corrupt_and_the_buffer_untouched(
    tier: DiskTier, folder: Path, change: int
) -> None:
    chunk = sealed_chunk(1, MIB)
    put_and_sync(tier, chunk)
    os.truncate(folder / file_of(chunk), chunk.buffer.nbytes + change)
    target = aligned_buffer(chunk.buffer.nbytes)
    assert failure(tier.read(chunk.id, target)).code is Code.CORRUPT
    assert not any(target)
    assert tier.size_of(chunk.id) == chunk.buffer.nbytes + change


def test_the_store_serves_a_flipped_bit_and_the_check_finds_it(tier: DiskTier, folder: Path) -> None:
    chunk = sealed_chunk(1, MIB)
    put_and_sync(tier, chunk)
    with (folder / file_of(chunk)).open("r+b") as file:
        file.seek(500_000)
        byte = file.read(1)[0]
        file.seek(500_000)
        file.write(bytes([byte ^ 4]))
    target = aligned_buffer(chunk.buffer.nbytes)
    tier.read(chunk.id, target).result()
    with pytest.raises(CWMError, match="checksum"):
        check(target, chunk.header)


@pytest.mark.parametrize("buffer", [memoryview(b""), memoryview(bytes(5000)), memoryview(bytes(8192)).cast("I")])
def test_what_is_no_sealed_chunk_is_not_written(tier: DiskTier, buffer: memoryview) -> None:
    with pytest.raises(ValueError, match="not the buffer of a sealed chunk"):
        tier.write(UNKNOWN, buffer)

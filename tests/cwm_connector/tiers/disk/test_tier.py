"""The disk tier on real file systems: bytes come back bit for bit, or a code says why not."""

import itertools
import logging
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.base import ChunkId, DurableTier
from cwm_connector.tiers.chunk import check
from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.tiers.chunks import SealedChunk, aligned_buffer, sealed_chunk
from tests.cwm_connector.tiers.mounts import frozen, mounted

MIB = 1 << 20
UNKNOWN = ChunkId(ChunkKey(bytes(32)), 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "chunks"
    folder.mkdir()
    return folder


@pytest.fixture
def tier(folder: Path) -> Iterator[DiskTier]:
    with opened(folder) as tier:
        yield tier


@contextmanager
def opened(folder: Path, timeout_s: float = 60) -> Iterator[DiskTier]:
    tier = DiskTier(folder, timeout_s=timeout_s)
    try:
        yield tier
    finally:
        tier.close()


def failure(future: "Future[None]") -> CWMError:
    with pytest.raises(CWMError) as raised:
        future.result(timeout=30)
    return raised.value


def put(tier: DurableTier, *chunks: SealedChunk) -> None:
    for future in [tier.write(chunk.id, chunk.buffer) for chunk in chunks]:
        future.result(timeout=30)
    tier.sync()


def assert_reads_back(tier: DurableTier, *chunks: SealedChunk) -> None:
    targets = [aligned_buffer(chunk.buffer.nbytes) for chunk in chunks]
    reads = [tier.read(chunk.id, target) for chunk, target in zip(chunks, targets, strict=True)]
    for chunk, target, read in zip(chunks, targets, reads, strict=True):
        read.result(timeout=30)
        check(target, chunk.header)
        assert target == chunk.buffer


def names(folder: Path) -> set[str]:
    """Every file below the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def file_of(chunk: SealedChunk) -> str:
    return f"cwm@0x{chunk.header.kv_rank:08x}@0@{chunk.header.key.hex()}.data"


# --- round trips ------------------------------------------------------------------------------------------------------


def test_chunks_come_back_bit_for_bit_also_in_another_process_later(folder: Path) -> None:
    chunks = [
        sealed_chunk(seed, size, rank) for seed, (size, rank) in enumerate([(1, 0), (MIB, 1), (3 * MIB, 2**32 - 1)])
    ]
    with opened(folder) as tier:
        put(tier, *chunks)
        assert_reads_back(tier, *chunks)
    with opened(folder) as later:
        assert_reads_back(later, *chunks)
        assert dict(later.inventory()) == {chunk.id: chunk.buffer.nbytes for chunk in chunks}
        assert [later.size_of(chunk.id) for chunk in chunks] == [chunk.buffer.nbytes for chunk in chunks]
    assert names(folder) == {file_of(chunk) for chunk in chunks}


def test_many_chunks_at_once_each_get_their_own_bytes(tier: DiskTier) -> None:
    chunks = [sealed_chunk(seed, 100_000 + seed) for seed in range(64)]
    put(tier, *chunks)
    assert_reads_back(tier, *chunks)


def test_bytes_pass_the_page_cache_by(tier: DiskTier, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunk = sealed_chunk(1, 4 * MIB)
    with caplog.at_level(logging.WARNING):
        put(tier, chunk)
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
            put(tier, *chunks)
            assert_reads_back(tier, *chunks)
        assert names(folder) == {file_of(chunk) for chunk in chunks}
    assert [message for message in caplog.messages if "direct I/O" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_writing_again_replaces(tier: DiskTier, folder: Path) -> None:
    old, new = sealed_chunk(1, MIB), sealed_chunk(2, 2 * MIB)
    put(tier, old)
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
    put(tier, chunk)
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


def test_deleting_says_whether_it_was_there(tier: DiskTier) -> None:
    chunk = sealed_chunk(1, MIB)
    put(tier, chunk)
    assert (tier.delete(chunk.id), tier.delete(chunk.id)) == (True, False)
    assert tier.size_of(chunk.id) is None
    assert list(tier.inventory()) == []


# --- bad reads --------------------------------------------------------------------------------------------------------


def test_a_chunk_that_is_not_there_is_said_to_be_missing(tier: DiskTier) -> None:
    assert failure(tier.read(UNKNOWN, aligned_buffer(8192))).code is Code.CHUNK_MISSING


@pytest.mark.parametrize("change", [-1, -4096, 1, 4096])
def test_a_file_of_another_length_is_corrupt_and_the_buffer_untouched(
    tier: DiskTier, folder: Path, change: int
) -> None:
    chunk = sealed_chunk(1, MIB)
    put(tier, chunk)
    os.truncate(folder / file_of(chunk), chunk.buffer.nbytes + change)
    target = aligned_buffer(chunk.buffer.nbytes)
    assert failure(tier.read(chunk.id, target)).code is Code.CORRUPT
    assert not any(target)
    assert tier.size_of(chunk.id) == chunk.buffer.nbytes + change


def test_the_store_serves_a_flipped_bit_and_the_check_finds_it(tier: DiskTier, folder: Path) -> None:
    chunk = sealed_chunk(1, MIB)
    put(tier, chunk)
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
    with pytest.raises(ValueError, match="no sealed chunk"):
        tier.write(UNKNOWN, buffer)


# --- bad disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_is_said_to_be_full_and_nothing_is_left_behind(tmp_path: Path, kind: str) -> None:
    with mounted(kind, tmp_path / "mount", size_mib=32) as folder, opened(folder) as tier:
        kept = sealed_chunk(1, 8 * MIB)
        put(tier, kept)
        more = [sealed_chunk(seed, 8 * MIB) for seed in range(2, 6)]
        ends = [future.exception(timeout=30) for future in [tier.write(chunk.id, chunk.buffer) for chunk in more]]
        written = [chunk for chunk, end in zip(more, ends, strict=True) if end is None]
        failed = [end for end in ends if end is not None]
        assert failed
        assert {end.code for end in failed if isinstance(end, CWMError)} == {Code.QUOTA}
        assert names(folder) == {file_of(chunk) for chunk in [kept, *written]}
        assert_reads_back(tier, kept, *written)
        for chunk in written:
            tier.delete(chunk.id)
        put(tier, more[0])
        assert_reads_back(tier, more[0])


def test_replacing_a_chunk_on_a_full_disk_keeps_the_one_that_stands(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "mount", size_mib=8) as folder, opened(folder) as tier:
        chunk = sealed_chunk(1, 5 * MIB)
        put(tier, chunk)
        assert failure(tier.write(chunk.id, chunk.buffer)).code is Code.QUOTA
        assert_reads_back(tier, chunk)


@contextmanager
def permission_lost(folder: Path) -> Iterator[None]:
    """For root by becoming nobody, for whom pytest's folders are closed."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        folder.chmod(0)
        try:
            yield
        finally:
            folder.chmod(0o700)


def test_lost_permission_is_said_and_nothing_is_lost(tier: DiskTier, folder: Path) -> None:
    chunk, more = sealed_chunk(1, MIB), sealed_chunk(2, MIB)
    put(tier, chunk)
    with permission_lost(folder):
        assert failure(tier.write(more.id, more.buffer)).code is Code.WRITE_FAILED
        assert failure(tier.read(chunk.id, aligned_buffer(chunk.buffer.nbytes))).code is Code.READ_FAILED
        for upkeep, code in [
            (tier.sync, Code.WRITE_FAILED),
            (lambda: tier.delete(chunk.id), Code.WRITE_FAILED),
            (tier.sweep_leftovers, Code.WRITE_FAILED),
            (tier.inventory, Code.READ_FAILED),
            (lambda: tier.size_of(chunk.id), Code.READ_FAILED),
        ]:
            with pytest.raises(CWMError) as raised:
                upkeep()
            assert raised.value.code is code
    put(tier, more)
    assert_reads_back(tier, chunk, more)


def test_a_write_that_fails_at_its_last_step_leaves_nothing(tier: DiskTier, folder: Path) -> None:
    chunk = sealed_chunk(1, MIB)
    (folder / file_of(chunk)).mkdir()
    assert failure(tier.write(chunk.id, chunk.buffer)).code is Code.WRITE_FAILED
    assert names(folder) == set()


def test_a_staging_folder_that_somebody_removed_is_made_anew(tier: DiskTier, folder: Path) -> None:
    put(tier, sealed_chunk(1, MIB))
    (staging,) = folder.glob(".tmp-*")
    staging.rmdir()
    chunks = [sealed_chunk(seed, MIB) for seed in range(2, 10)]
    put(tier, *chunks)
    assert_reads_back(tier, *chunks)


def test_a_store_folder_that_vanished_fails_each_write_and_misses_each_read(tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    folder.mkdir()
    with opened(folder) as tier:
        folder.rmdir()
        chunk = sealed_chunk(1, MIB)
        assert failure(tier.write(chunk.id, chunk.buffer)).code is Code.WRITE_FAILED
        assert failure(tier.read(chunk.id, chunk.buffer)).code is Code.CHUNK_MISSING


def test_a_missing_store_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CWMError, match="CWM_DISK_PATH") as raised:
        DiskTier(tmp_path / "nothing")
    assert raised.value.code is Code.BACKEND


def test_a_disk_that_hangs_fails_in_time_and_serves_again_when_it_is_back(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path / "mount", size_mib=64) as folder, opened(folder, timeout_s=0.5) as tier:
        chunk, lost = sealed_chunk(1, MIB), sealed_chunk(2, MIB)
        put(tier, chunk)
        with frozen(folder.parent):
            overdue = failure(tier.write(lost.id, lost.buffer))
            assert (overdue.code, overdue.context["buffer_in_use"]) == (Code.WRITE_FAILED, True)
            with pytest.raises(CWMError, match="does not answer"):
                tier.delete(chunk.id)
            assert_reads_back(tier, chunk)
        wait_until_deleted(tier, chunk.id)  # by the call that hung: its thread serves again
        put(tier, *(sealed_chunk(seed, MIB) for seed in range(3, 12)))
        assert tier.size_of(lost.id) is None
        assert not any(lost.id.key.hex() in name for name in names(folder))


def wait_until_deleted(tier: DiskTier, chunk_id: ChunkId) -> None:
    while True:
        try:
            if tier.size_of(chunk_id) is None:
                return
        except CWMError as problem:
            assert problem.retryable


# --- kills and leftovers ----------------------------------------------------------------------------------------------


GROUP, GROUPS = 4, 3


def killable_chunks() -> list[SealedChunk]:
    return [sealed_chunk(seed, 1_000_000) for seed in range(GROUP * GROUPS)]


def write_until_killed(folder: Path, said: Connection) -> None:
    """Writes groups of chunks, again and again, and says which one is durable."""
    tier, chunks = DiskTier(folder), killable_chunks()
    for group in itertools.cycle(range(GROUPS)):
        put(tier, *chunks[group * GROUP : (group + 1) * GROUP])
        said.send(group)


def test_a_killed_writer_leaves_whole_chunks_and_leftovers_that_are_swept(folder: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance, leftovers = random.Random(1), 0
    headers = {chunk.id: chunk.header for chunk in killable_chunks()}
    ids = list(headers)
    for _ in range(20):
        heard, said = context.Pipe(duplex=False)
        writer = context.Process(target=write_until_killed, args=(folder, said))
        writer.start()
        said.close()
        groups = {heard.recv() for _ in range(chance.randrange(1, 2 * GROUPS))}
        in_flight = chance.randrange(1, GROUP)
        while len(list(folder.glob(".tmp-*/*"))) < in_flight:
            assert writer.is_alive()
        writer.kill()
        writer.join()
        with opened(folder) as tier:
            found = dict(tier.inventory())
            assert {chunk_id for group in groups for chunk_id in ids[group * GROUP : (group + 1) * GROUP]} <= set(found)
            for chunk_id, size in found.items():
                target = aligned_buffer(size)
                tier.read(chunk_id, target).result()
                check(target, headers[chunk_id])
                tier.delete(chunk_id)
            leftovers += tier.sweep_leftovers()
        assert list(folder.iterdir()) == []
    assert leftovers > 0, "no kill hit a write: this test showed nothing"


def test_leftovers_go_and_everything_else_stays(folder: Path) -> None:
    chunk = sealed_chunk(1, MIB)
    dead = folder / f".tmp-{'0' * 32}"
    dead_with_foreign = folder / f".tmp-{'1' * 32}"
    foreign_folder = folder / ".tmp-of-somebody"
    for made in (dead, dead_with_foreign, foreign_folder):
        made.mkdir()
        (made / f"cwm-7@0x00000000@0@{'ab' * 32}.tmp").write_bytes(b"half")
        (made / f"cwm-8@0x00000000@0@{'ab' * 32}.data").write_bytes(b"whole")
    (dead_with_foreign / "notes.txt").write_bytes(b"mine")
    for name in (f"cwm@0x00000000@0@{'ab' * 32}.tmp", "cwm@0x00000000@0@short.data"):
        (folder / name).write_bytes(b"leftover")
    for name in ("notes.txt", "cwm.txt", ".hidden", "owner"):
        (folder / name).write_bytes(b"foreign")
    with opened(folder) as tier:
        put(tier, chunk)
        assert dict(tier.inventory()) == {chunk.id: chunk.buffer.nbytes}
        assert tier.sweep_leftovers() == 6
        assert tier.sweep_leftovers() == 0
        assert_reads_back(tier, chunk)
        put(tier, chunk)
    assert not dead.exists()
    assert names(folder) == {
        file_of(chunk),
        "notes.txt",
        "cwm.txt",
        ".hidden",
        "owner",
        f"{dead_with_foreign.name}/notes.txt",
        *(f"{foreign_folder.name}/{path.name}" for path in foreign_folder.iterdir()),
    }


def test_a_living_writers_staging_folder_is_not_swept(folder: Path) -> None:
    with opened(folder) as one, opened(folder) as other:
        put(one, sealed_chunk(1, MIB))
        (staging,) = folder.glob(".tmp-*")
        assert other.sweep_leftovers() == 0
        assert staging.is_dir()
    assert not staging.exists()


def test_a_store_that_only_reads_and_sweeps_makes_no_folder(folder: Path) -> None:
    with opened(folder) as tier:
        tier.read(UNKNOWN, aligned_buffer(4096)).exception()
        tier.sweep_leftovers()
        assert list(tier.inventory()) == []
        assert list(folder.iterdir()) == []


def test_no_thread_or_descriptor_is_left_after_closing(folder: Path) -> None:
    def opened_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    chunk = sealed_chunk(1, MIB)
    threads, files = threading.active_count(), opened_files()
    with opened(folder) as tier:
        put(tier, chunk)
        next(folder.glob(".tmp-*")).rmdir()
        put(tier, chunk)
        assert_reads_back(tier, chunk)
        own = [thread for thread in threading.enumerate() if thread.name.startswith("cwm-disk")]
    for thread in own:
        thread.join(timeout=5)
    assert (threading.active_count(), opened_files()) == (threads, files)

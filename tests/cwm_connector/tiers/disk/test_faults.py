"""Disks that are full, closed or hang, and writers that are killed: nothing is lost, and nothing is left behind."""

import itertools
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import check
from cwm_connector.tiers.disk.tier import DiskTier
from tests.cwm_connector.tiers.chunks import (
    MIB,
    UNKNOWN,
    SealedChunk,
    aligned_buffer,
    assert_reads_back,
    failure,
    sealed_chunk,
)
from tests.cwm_connector.tiers.disk.tiers import file_of, names, opened, put_and_sync
from tests.cwm_connector.tiers.mounts import frozen, mounted

# --- bad disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_is_said_to_be_full_and_nothing_is_left_behind(tmp_path: Path, kind: str) -> None:
    with mounted(kind, tmp_path / "mount", size_mib=32) as folder, opened(folder) as tier:
        kept = sealed_chunk(1, 8 * MIB)
        put_and_sync(tier, kept)
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
        put_and_sync(tier, more[0])
        assert_reads_back(tier, more[0])


def test_replacing_a_chunk_on_a_full_disk_keeps_the_one_that_stands(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "mount", size_mib=8) as folder, opened(folder) as tier:
        chunk = sealed_chunk(1, 5 * MIB)
        put_and_sync(tier, chunk)
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
    put_and_sync(tier, chunk)
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
    put_and_sync(tier, more)
    assert_reads_back(tier, chunk, more)


def test_a_write_that_fails_at_its_last_step_leaves_nothing(tier: DiskTier, folder: Path) -> None:
    chunk = sealed_chunk(1, MIB)
    (folder / file_of(chunk)).mkdir()
    assert failure(tier.write(chunk.id, chunk.buffer)).code is Code.WRITE_FAILED
    assert names(folder) == set()


def test_a_staging_folder_that_somebody_removed_is_made_anew(tier: DiskTier, folder: Path) -> None:
    put_and_sync(tier, sealed_chunk(1, MIB))
    (staging,) = folder.glob(".tmp-*")
    staging.rmdir()
    chunks = [sealed_chunk(seed, MIB) for seed in range(2, 10)]
    put_and_sync(tier, *chunks)
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
        put_and_sync(tier, chunk)
        with frozen(folder.parent):
            overdue = failure(tier.write(lost.id, lost.buffer))
            assert (overdue.code, overdue.context["buffer_in_use"]) == (Code.WRITE_FAILED, True)
            with pytest.raises(CWMError, match="does not answer"):
                tier.delete(chunk.id)
            assert_reads_back(tier, chunk)
        wait_until_deleted(tier, chunk.id)  # by the call that hung: its thread serves again
        put_and_sync(tier, *(sealed_chunk(seed, MIB) for seed in range(3, 12)))
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
        put_and_sync(tier, *chunks[group * GROUP : (group + 1) * GROUP])
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
        put_and_sync(tier, chunk)
        assert dict(tier.inventory()) == {chunk.id: chunk.buffer.nbytes}
        assert tier.sweep_leftovers() == 6
        assert tier.sweep_leftovers() == 0
        assert_reads_back(tier, chunk)
        put_and_sync(tier, chunk)
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
        put_and_sync(one, sealed_chunk(1, MIB))
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
        put_and_sync(tier, chunk)
        next(folder.glob(".tmp-*")).rmdir()
        put_and_sync(tier, chunk)
        assert_reads_back(tier, chunk)
        own = [thread for thread in threading.enumerate() if thread.name.startswith("cwm-disk")]
    for thread in own:
        thread.join(timeout=5)
    assert (threading.active_count(), opened_files()) == (threads, files)

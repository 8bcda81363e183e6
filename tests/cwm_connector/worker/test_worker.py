"""worker.py: blocks -> chunk -> tiers -> other blocks, with the real copies, the real memory pool and real files."""

import os
import threading
from pathlib import Path

import pytest
import torch

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, TierName
from cwm_connector.step.jobs import ChunkBlocks, ClaimedChunk, DropJob, LoadJob, PromoteJob, SaveJob, Work
from cwm_connector.tiers.base import ChunkId
from tests.cwm_connector.worker.ranks import Rank, parts, specs
from tests.support.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_go_through_memory_and_disk_into_other_blocks_bit_exact(tmp_path: Path, device: str) -> None:
    first, later = Rank(tmp_path, device=device), Rank(tmp_path, device=device)
    chunks = specs(6)
    first.save(chunks).finished.result()
    for cache in later.caches:
        cache.zero_()
    from_disk = later.load(chunks, 12).finished.result().outcomes
    from_memory = later.load(chunks, 2).finished.result().outcomes
    assert {outcome.tier for outcome in from_disk.values()} == {TierName.DISK}
    assert {outcome.tier for outcome in from_memory.values()} == {TierName.CPU}
    assert torch.equal(later.pages(range(12, 18)), first.pages(range(6)))
    assert torch.equal(later.pages(range(2, 8)), first.pages(range(6)))
    for rank in (first, later):
        rank.side.close()


def test_saved_blocks_come_back_bit_exact_in_other_blocks_from_memory(rank: Rank) -> None:
    chunks = specs(5)
    saved = rank.save(chunks)
    assert saved.captured.done()
    outcomes = saved.finished.result().outcomes
    assert [outcomes[chunk.key].size_bytes for chunk in chunks] == [rank.file_of(c).stat().st_size for c in chunks]
    before = rank.pages(range(5))
    loaded = rank.load(chunks, 10).finished.result().outcomes
    assert {outcome.tier for outcome in loaded.values()} == {TierName.CPU}
    assert torch.equal(rank.pages(range(10, 15)), before)
    assert rank.side.take_loaded() == {"r"} and rank.side.take_bad_blocks() == set()


def test_saved_blocks_come_back_bit_exact_in_a_new_process_s_memory_from_disk(rank: Rank) -> None:
    chunks = specs(5)
    rank.save(chunks).finished.result()
    later = Rank(rank.folder)
    for cache in later.caches:
        cache.zero_()
    loaded = later.load(chunks, 3).finished.result().outcomes
    assert {outcome.tier for outcome in loaded.values()} == {TierName.DISK}
    assert torch.equal(later.pages(range(3, 8)), rank.pages(range(5)))
    later.side.close()


def test_a_part_of_a_chunk_is_loaded_into_its_blocks_only(rank: Rank) -> None:
    chunks = specs(4)
    rank.save(chunks).finished.result()
    untouched = rank.pages(range(11, 24))
    rank.run(LoadJob(rank.board.next_id(), "r", (ChunkBlocks(chunks[1], (10,), first=1),))).finished.result()
    assert torch.equal(rank.pages(range(10, 11)), rank.pages(range(3, 4)))
    assert torch.equal(rank.pages(range(11, 24)), untouched)


def test_a_flipped_bit_fails_its_block_and_all_after_it_and_none_before(rank: Rank) -> None:
    chunks = specs(6)
    rank.save(chunks).finished.result()
    path = rank.file_of(chunks[1])
    damaged = bytearray(path.read_bytes())
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    later = Rank(rank.folder)
    outcomes = later.load(chunks, 10).finished.result().outcomes
    assert outcomes[chunks[0].key].failure is None
    failure = outcomes[chunks[1].key].failure
    assert failure is not None and failure[0] is Code.CORRUPT
    assert later.side.take_bad_blocks() == {12, 13, 14, 15}
    assert later.side.take_loaded() == {"r"}
    assert later.bad == [(chunks[1].key, TierName.DISK)]
    later.side.close()


def test_a_bit_that_flips_in_memory_is_read_again_from_disk(rank: Rank) -> None:
    chunks = specs(2)
    rank.save(chunks).finished.result()
    resident = rank.cpu.pin(ChunkId(chunks[0].key, 0))
    assert resident is not None
    resident.view[6000] ^= 4
    rank.cpu.unpin(ChunkId(chunks[0].key, 0))
    outcomes = rank.load(chunks, 8).finished.result().outcomes
    assert outcomes[chunks[0].key].tier is TierName.DISK
    assert torch.equal(rank.pages(range(8, 10)), rank.pages(range(2)))


def test_a_missing_file_fails_the_load_and_names_the_chunk(rank: Rank) -> None:
    chunks = specs(4)
    rank.save(chunks).finished.result()
    rank.file_of(chunks[1]).unlink()
    later = Rank(rank.folder)
    outcome = later.load(chunks, 10).finished.result().outcomes[chunks[1].key]
    assert outcome.failure is not None and outcome.failure[0] is Code.CHUNK_MISSING
    assert later.side.take_bad_blocks() == {12, 13}
    assert later.bad == [(chunks[1].key, TierName.DISK)]
    later.side.close()


def test_a_save_larger_than_cpu_memory_goes_through_it_in_pieces(tmp_path: Path) -> None:
    small = Rank(tmp_path, cpu_chunks=2)
    chunks = specs(12)
    outcomes = small.save(chunks).finished.result().outcomes
    assert len(outcomes) == 6 and all(small.file_of(chunk).exists() for chunk in chunks)
    before = small.pages(range(12))
    small.load(chunks, 12).finished.result()
    assert torch.equal(small.pages(range(12, 24)), before)
    small.side.close()


def test_promoting_reads_what_fits_and_says_where_the_rest_is(rank: Rank) -> None:
    chunks = specs(12)
    rank.save(chunks).finished.result()
    small = Rank(rank.folder, cpu_chunks=3)
    first = small.run(PromoteJob(small.board.next_id(), chunks)).finished.result().outcomes
    assert {outcome.tier for outcome in first.values()} == {TierName.DISK}
    assert all(outcome.failure is None for outcome in first.values())
    again = small.run(PromoteJob(small.board.next_id(), chunks)).finished.result().outcomes
    assert [again[chunk.key].tier for chunk in chunks[:3]] == [TierName.CPU] * 3
    assert {again[chunk.key].tier for chunk in chunks[3:]} == {TierName.DISK}
    small.side.close()


def test_promoting_tells_which_chunks_are_bad_and_goes_on_behind_them(rank: Rank) -> None:
    chunks = specs(6)
    rank.save(chunks).finished.result()
    os.truncate(rank.file_of(chunks[1]), 4096)
    later = Rank(rank.folder)
    outcomes = later.run(PromoteJob(later.board.next_id(), chunks)).finished.result().outcomes
    assert [outcomes[chunk.key].failure is None for chunk in chunks] == [True, False, True]
    later.side.close()


def test_dropped_chunks_leave_every_tier_and_give_back_their_bytes(rank: Rank) -> None:
    chunks = specs(4)
    rank.save(chunks).finished.result()
    sizes = [rank.file_of(chunk).stat().st_size for chunk in chunks]
    doomed = tuple(ClaimedChunk(chunk.key, NO_CLAIM) for chunk in chunks)
    job = DropJob(rank.board.next_id(), doomed, (TierName.CPU, TierName.DISK))
    dropped = rank.run(job).finished.result()
    assert sorted(outcome.size_bytes for outcome in dropped.outcomes.values()) == sorted(sizes)
    assert rank.cpu.usage().chunks == 0
    assert not [path for path in rank.folder.iterdir() if path.is_file()]


def test_a_save_that_can_t_be_written_fails_with_its_code_and_keeps_nothing(rank: Rank) -> None:
    rank.folder.rename(rank.folder.with_name("gone"))
    saved = rank.save(specs(4))
    assert saved.captured.done()  # the blocks are let go in any case
    with pytest.raises(CWMError, match="CWM-4001"):
        saved.finished.result()
    assert rank.cpu.usage().used_bytes == 0


def test_jobs_of_one_kind_never_wait_for_another(rank: Rank) -> None:
    chunks = specs(4)
    rank.save(chunks).finished.result()
    blocked = threading.Event()
    rank.side._save_thread.submit(blocked.wait, 60)
    try:
        assert rank.load(chunks, 10).finished.result().outcomes
    finally:
        blocked.set()


def test_loads_and_thaws_from_memory_never_wait_for_a_slower_tier(rank: Rank) -> None:
    chunks = specs(4)
    rank.save(chunks).finished.result()
    blocked = threading.Event()
    for thread in (rank.side._load_thread, rank.side._promote_thread):
        thread.submit(blocked.wait, 60)
    try:
        loaded = rank.load(chunks, 10).finished.result().outcomes
        promoted = rank.run(PromoteJob(rank.board.next_id(), chunks)).finished.result().outcomes
    finally:
        blocked.set()
    assert {outcome.tier for outcome in (*loaded.values(), *promoted.values())} == {TierName.CPU}


def test_what_is_in_memory_is_checked_by_the_load_and_not_by_the_thaw(rank: Rank) -> None:
    chunks = specs(2)
    rank.save(chunks).finished.result()
    resident = rank.cpu.pin(ChunkId(chunks[0].key, 0))
    assert resident is not None
    resident.view[6000] ^= 4
    rank.cpu.unpin(ChunkId(chunks[0].key, 0))
    promoted = rank.run(PromoteJob(rank.board.next_id(), chunks)).finished.result().outcomes
    assert promoted[chunks[0].key].tier is TierName.CPU
    assert rank.load(chunks, 8).finished.result().outcomes[chunks[0].key].tier is TierName.DISK
    assert torch.equal(rank.pages(range(8, 10)), rank.pages(range(2)))


@pytest.mark.parametrize("kind", [SaveJob, LoadJob, PromoteJob, DropJob])
def test_a_job_that_can_t_be_handed_over_ends_as_failed(
    rank: Rank, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = specs(4)
    number = rank.board.next_id()
    jobs: dict[type, Work] = {
        SaveJob: SaveJob(number, parts(chunks, 0), (TierName.DISK,), NO_CLAIM),
        LoadJob: LoadJob(number, "r", parts(chunks, 10)),
        PromoteJob: PromoteJob(number, chunks),
        DropJob: DropJob(number, (ClaimedChunk(chunks[0].key, NO_CLAIM),), (TierName.CPU,)),
    }

    def refuse(*_: object) -> None:
        raise RuntimeError("no thread can be started")

    for name in ("_save_thread", "_memory_load_thread", "_memory_promote_thread", "_promote_thread"):
        monkeypatch.setattr(getattr(rank.side, name), "submit", refuse)
    ticket = rank.run(jobs[kind])
    assert ticket.captured.done()
    if kind is LoadJob:
        assert rank.side.take_loaded() == {"r"} and rank.side.take_bad_blocks() == {10, 11, 12, 13}
    else:
        with pytest.raises(CWMError, match="CWM-9001"):
            ticket.finished.result()

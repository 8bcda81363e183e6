"""worker.py: copies through the queues of a device, and how much memory a save takes."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import NO_CLAIM, TierName
from cwm_connector.step.jobs import LoadJob, SaveJob
from cwm_connector.tiers.base import ChunkId
from tests.cwm_connector.worker.ranks import CHUNK_BYTES, LAYERS, Rank, parts, specs
from tests.support.host_queue import HostQueue


def test_a_copy_from_memory_is_one_batch_behind_the_model_s_own_work(tmp_path: Path) -> None:
    out, back = HostQueue(), HostQueue()
    rank = Rank(tmp_path, queues=(out, back))
    chunks = specs(12)
    rank.save(chunks).finished.result()
    before = rank.pages(range(12))
    rank.load(chunks, 12).finished.result()
    assert torch.equal(rank.pages(range(12, 24)), before)
    # Each chunk's two blocks lie one behind the other.
    page = rank.side._shape.group_bytes[0] // LAYERS
    assert {size for queue in (out, back) for batch in queue.batches for size in batch.sizes} == {2 * page}
    assert sum(len(batch.sizes) for batch in back.batches) == 6 * LAYERS
    assert {type(batch.after).__name__ for batch in (*out.batches, *back.batches)} == {"Point"}
    assert rank.cpu.usage().chunks == 6
    rank.side.close()


def test_saved_bytes_are_right_though_copies_are_made_as_late_as_they_may(tmp_path: Path) -> None:
    first = Rank(tmp_path, cpu_chunks=5, queues=(HostQueue(), HostQueue()))
    chunks = specs(24)
    first.save(chunks).finished.result()
    later = Rank(tmp_path, cpu_chunks=3, queues=(HostQueue(), HostQueue()))
    for cache in later.caches:
        cache.zero_()
    outcomes = later.load(chunks, 0).finished.result().outcomes
    assert all(outcome.failure is None for outcome in outcomes.values())
    assert torch.equal(later.pages(range(24)), first.pages(range(24)))
    for rank in (first, later):
        rank.side.close()


def test_no_byte_of_a_chunk_that_fails_its_check_reaches_the_device(tmp_path: Path) -> None:
    back = HostQueue()
    rank = Rank(tmp_path, queues=(HostQueue(), back))
    chunks = specs(8)
    rank.save(chunks).finished.result()
    bad = ChunkId(chunks[2].key, 0)
    resident = rank.cpu.pin(bad)
    assert resident is not None
    resident.view[6000] ^= 4
    rank.cpu.unpin(bad)
    rank.file_of(chunks[2]).unlink()
    within = range(resident.tensor.data_ptr(), resident.tensor.data_ptr() + resident.nbytes)
    outcomes = rank.load(chunks, 12).finished.result().outcomes
    assert [outcomes[chunk.key].failure is None for chunk in chunks[:3]] == [True, True, False]
    assert not [source for batch in back.batches for source in batch.sources if source in within]
    assert rank.side.take_bad_blocks() == {16, 17, 18, 19}
    rank.side.close()


def test_a_request_runs_when_the_bus_has_its_last_copies_which_the_model_and_the_memory_wait_for(
    tmp_path: Path,
) -> None:
    back = HostQueue()
    rank = Rank(tmp_path, queues=(HostQueue(), back))
    chunks = specs(2)
    rank.save(chunks).finished.result()
    back.lock.acquire()
    back.awaited.clear()
    ticket = rank.board.post(LoadJob(rank.board.next_id(), "r", parts(chunks, 10)))
    rank.side.submit(rank.board.take())
    whole = rank.cpu.usage().limit_bytes
    try:
        assert back.awaited.wait(60) and back.batches
        assert rank.side.take_loaded() == {"r"} and rank.side.take_bad_blocks() == set()
        (last_copies,) = back.held  # the model's later work is queued behind it
        assert not last_copies.query()
        with pytest.raises(CWMError, match="CWM-7001"):
            rank.cpu.reserve(whole)
        assert not rank.finish(ticket, 0.05)
    finally:
        back.lock.release()
    assert rank.finish(ticket, 60) and last_copies.query()
    rank.cpu.release(rank.cpu.reserve(whole))
    assert rank.side.take_loaded() == set() and len(back.held) == 1


def test_a_request_whose_last_copies_fail_is_not_told_to_run_twice(tmp_path: Path) -> None:
    back = HostQueue()
    rank = Rank(tmp_path, queues=(HostQueue(), back))
    chunks = specs(2)
    rank.save(chunks).finished.result()
    back.gone = True
    outcomes = rank.load(chunks, 10).finished.result().outcomes
    assert outcomes[chunks[0].key].failure is not None
    assert rank.side.take_loaded() == {"r"} and rank.side.take_bad_blocks() == set()
    rank.side.close()


def test_all_blocks_of_a_save_are_copied_before_a_chunk_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = HostQueue()
    rank = Rank(tmp_path, queues=(out, HostQueue()))
    monkeypatch.setattr("cwm_connector.worker.saves.BATCH_BYTES", CHUNK_BYTES)
    made: list[int] = []
    disk = rank.side._stack.durable_tiers[TierName.DISK]
    write = disk.write

    def watched(*args: Any) -> Any:
        made.append(out.made)
        return write(*args)

    monkeypatch.setattr(disk, "write", watched)
    rank.save(specs(24)).finished.result()
    assert len(out.batches) == 12 and made == [12] * 12
    rank.side.close()


@pytest.mark.parametrize("broken_at", [0, 1])
def test_a_device_that_fails_ends_the_save_and_gives_the_memory_back(tmp_path: Path, broken_at: int) -> None:
    rank = Rank(tmp_path, cpu_chunks=12, queues=(HostQueue(broken_at=broken_at), HostQueue()))
    with pytest.raises(CWMError, match="CWM-9001"):
        rank.save(specs(24)).finished.result()
    whole = rank.cpu.usage().limit_bytes
    rank.cpu.release(rank.cpu.reserve(whole))
    rank.side.close()


def test_a_device_that_fails_ends_the_load_and_names_its_blocks(tmp_path: Path) -> None:
    rank = Rank(tmp_path, queues=(HostQueue(), HostQueue(broken_at=0)))
    chunks = specs(4)
    rank.save(chunks).finished.result()
    outcomes = rank.load(chunks, 10).finished.result().outcomes
    assert outcomes[chunks[0].key].failure is not None
    assert rank.side.take_bad_blocks() == {10, 11, 12, 13}
    whole = rank.cpu.usage().limit_bytes
    rank.cpu.release(rank.cpu.reserve(whole))
    rank.side.close()


def test_a_save_of_any_size_leaves_most_of_the_memory_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Rank(tmp_path, cpu_chunks=10)
    others = specs(8, seed=5000)
    rank.save(others).finished.result()
    disk, slow = rank.side._stack.durable_tiers[TierName.DISK], threading.Event()
    write = disk.write

    def write_slowly(*arguments: Any) -> Any:
        slow.wait(60)
        return write(*arguments)

    monkeypatch.setattr(disk, "write", write_slowly)
    ticket = rank.board.post(SaveJob(rank.board.next_id(), parts(specs(24), 0), (TierName.DISK,), NO_CLAIM))
    rank.side.submit(rank.board.take())
    try:
        assert rank.load(others, 12).finished.result().outcomes
        most = [rank.cpu.reserve(CHUNK_BYTES) for _ in range(6)]
        for buffer in most:
            rank.cpu.release(buffer)
    finally:
        slow.set()
    while not ticket.finished.done():
        if (reports := rank.side.take_reports()) is not None:
            rank.board.deliver(reports.reports)
    assert len(ticket.finished.result().outcomes) == 12
    rank.side.close()


def test_a_save_larger_than_memory_leaves_others_chunks_in_it(tmp_path: Path) -> None:
    rank = Rank(tmp_path, cpu_chunks=10)
    others = specs(8, seed=5000)
    rank.save(others).finished.result()
    rank.save(specs(24)).finished.result()
    assert sum(rank.cpu.contains(ChunkId(chunk.key, 0)) for chunk in others) >= 2
    rank.side.close()


def test_blocks_are_saved_from_the_end_of_the_sequence(tmp_path: Path) -> None:
    out = HostQueue()
    rank = Rank(tmp_path, cpu_chunks=5, queues=(out, HostQueue()))
    rank.save(specs(24)).finished.result()
    first = [min(batch.sources) for batch in out.batches]
    assert len(first) > 2 and first == sorted(first, reverse=True)
    rank.side.close()


def test_each_chunk_is_reported_as_soon_as_it_is_read_though_none_before_it_is(tmp_path: Path) -> None:
    out = HostQueue()
    rank = Rank(tmp_path, cpu_chunks=5, queues=(out, HostQueue()))
    captured: list[int] = []
    ticket = rank.board.post(SaveJob(rank.board.next_id(), parts(specs(24), 0), (TierName.DISK,), NO_CLAIM))
    ticket.on_captured = captured.append
    rank.side.submit(rank.board.take())
    while not ticket.finished.done():
        if (reports := rank.side.take_reports()) is not None:
            rank.board.deliver(reports.reports)
    assert captured == sorted(captured) and captured[-1] == 12 and len(set(captured)) > 4
    rank.side.close()

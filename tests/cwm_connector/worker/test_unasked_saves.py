"""saves.py: a save that nobody asked for leaves what others use in memory where it is."""

import threading
import time
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import NO_CLAIM, TierName
from cwm_connector.step.job_board import Ticket
from cwm_connector.step.jobs import SaveJob
from cwm_connector.tiers.base import ChunkId
from tests.cwm_connector.worker.ranks import Rank, parts, specs


def save_unasked(rank: Rank, blocks: int, seed: int = 0) -> Ticket:
    job = SaveJob(rank.board.next_id(), parts(specs(blocks, seed), 0), (TierName.DISK,), NO_CLAIM, asked_for=False)
    return rank.run(job)


def resident(rank: Rank, blocks: int, seed: int) -> int:
    return sum(rank.cpu.contains(ChunkId(chunk.key, 0)) for chunk in specs(blocks, seed))


def fill(rank: Rank, chunks: int) -> None:
    """Bring chunks into memory that somebody loads."""
    for number in range(chunks):
        rank.save(specs(2, seed=5000 + 100 * number)).finished.result()
        rank.load(specs(2, seed=5000 + 100 * number), 12).finished.result()


def filled(rank: Rank, chunks: int) -> list[bool]:
    return [resident(rank, 2, 5000 + 100 * number) == 1 for number in range(chunks)]


@pytest.mark.parametrize("hot", [6, 9])
def test_it_goes_through_the_memory_that_is_free_and_leaves_hot_chunks_there(tmp_path: Path, hot: int) -> None:
    rank = Rank(tmp_path, cpu_chunks=10)
    fill(rank, hot)
    assert len(save_unasked(rank, 24).finished.result().outcomes) == 12
    assert all(filled(rank, hot))
    rank.side.close()


def test_without_free_memory_it_takes_one_batch_from_the_coldest_and_goes_through_that(tmp_path: Path) -> None:
    rank = Rank(tmp_path, cpu_chunks=10)
    fill(rank, 10)
    assert len(save_unasked(rank, 24).finished.result().outcomes) == 12
    assert filled(rank, 10) == [False] + [True] * 9
    assert len(save_unasked(rank, 24, seed=9000).finished.result().outcomes) == 12
    assert filled(rank, 10) == [False] + [True] * 9, "the next one goes through the same memory"
    rank.side.close()


def test_a_save_that_was_asked_for_takes_its_share_from_what_others_have_used(tmp_path: Path) -> None:
    rank = Rank(tmp_path, cpu_chunks=10)
    fill(rank, 10)
    rank.save(specs(24)).finished.result()
    assert sum(filled(rank, 10)) < 9 and resident(rank, 24, 0) >= 4
    rank.side.close()


def test_what_it_leaves_in_memory_goes_first(tmp_path: Path) -> None:
    rank = Rank(tmp_path, cpu_chunks=10)
    save_unasked(rank, 8)
    fill(rank, 10)
    assert resident(rank, 8, 0) == 0 and all(filled(rank, 10))
    rank.side.close()


@pytest.mark.parametrize("let_go", [True, False])
def test_it_waits_longer_than_others_for_memory_that_is_pinned(
    tmp_path: Path, let_go: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwm_connector.tiers.cpu.QUIET_S", 0.1)
    rank = Rank(tmp_path, cpu_chunks=4)
    whole = rank.cpu.reserve(rank.cpu.usage().limit_bytes)
    with pytest.raises(CWMError, match="CWM-7001"):
        rank.save(specs(2)).finished.result()
    timer = threading.Timer(0.2 if let_go else 60, rank.cpu.release, [whole])
    timer.start()
    began = time.monotonic()
    ticket = save_unasked(rank, 2)
    if let_go:
        assert len(ticket.finished.result().outcomes) == 1
    else:
        timer.cancel()
        assert "CWM-7001" in str(ticket.finished.exception())
    assert time.monotonic() - began >= (0.2 if let_go else 0.3)
    timer.join()
    if not let_go:
        rank.cpu.release(whole)
    rank.side.close()

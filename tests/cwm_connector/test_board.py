"""board.py and placement.py: what several ranks report becomes one answer."""

import pytest

from cwm_connector.board import JobBoard
from cwm_connector.jobs import ChunkOutcome, DropJob, Phase, Report
from cwm_connector.placement import CpuPlacement
from cwm_connector.protocol import Code, CWMError
from cwm_connector.terms import ChunkKey, TierName
from cwm_connector.tiers.base import (
    ChunkId,
)

KEY = ChunkKey(b"k" * 32)


def finished(job: DropJob, rank: int, tier: TierName = TierName.CPU, failure: tuple[Code, str] | None = None) -> Report:
    return Report(job.id, rank, Phase.FINISHED, 1, (ChunkOutcome(KEY, tier, 10),), failure, seconds=float(rank))


def test_a_job_is_done_when_every_rank_has_finished_it() -> None:
    board = JobBoard(world_size=2)
    job = DropJob(board.next_id(), (KEY,))
    ticket = board.post(job)
    assert board.take() == [job] and board.take() == []
    board.deliver([finished(job, 0)])
    assert not ticket.finished.done()
    board.deliver([finished(job, 1, TierName.DISK)])
    result = ticket.finished.result(0)
    assert (result.outcomes[KEY].size_bytes, result.outcomes[KEY].tier, result.seconds) == (20, TierName.DISK, 1.0)


def test_blocks_are_captured_when_every_rank_has_read_them() -> None:
    board = JobBoard(world_size=2)
    job = DropJob(board.next_id(), (KEY,))
    ticket = board.post(job)
    board.deliver([Report(job.id, 0, Phase.CAPTURED)])
    assert not ticket.captured.done()
    board.deliver([Report(job.id, 1, Phase.CAPTURED)])
    assert ticket.captured.done()


def test_one_rank_s_failure_fails_the_job_after_all_have_ended() -> None:
    board = JobBoard(world_size=2)
    job = DropJob(board.next_id(), (KEY,))
    ticket = board.post(job)
    board.deliver([finished(job, 0, failure=(Code.WRITE_FAILED, "disk"))])
    assert not ticket.finished.done()
    board.deliver([finished(job, 1)])
    assert ticket.captured.done()
    with pytest.raises(CWMError, match="CWM-4001"):
        ticket.finished.result(0)


def test_progress_is_that_of_the_slowest_rank() -> None:
    board = JobBoard(world_size=2)
    seen: list[int] = []
    job = DropJob(board.next_id(), (KEY,))
    board.post(job, seen.append)
    board.deliver([Report(job.id, 0, Phase.RUNNING, done=3), Report(job.id, 1, Phase.RUNNING, done=1)])
    assert seen == [1]


def test_a_report_of_an_unknown_job_is_ignored() -> None:
    JobBoard(world_size=1).deliver([Report(99, 0, Phase.FINISHED)])  # type: ignore[arg-type]


def test_a_shutdown_ends_every_wait() -> None:
    board = JobBoard(world_size=1)
    ticket = board.post(DropJob(board.next_id(), (KEY,)))
    board.fail_all(CWMError(Code.ENGINE_UNREACHABLE, "gone"))
    with pytest.raises(CWMError, match="CWM-5001"):
        ticket.finished.result(0)


def test_a_chunk_is_in_memory_once_every_rank_has_it_there() -> None:
    placement = CpuPlacement(world_size=2)
    placement.update([ChunkId(KEY, 0)], [])
    assert not placement.holds(KEY) and placement.tiers_of([KEY]) == {"disk": 1}
    placement.update([ChunkId(KEY, 1)], [])
    assert placement.holds(KEY) and placement.tiers_of([KEY]) == {"cpu": 1, "disk": 1} and placement.keys() == [KEY]
    placement.update([], [ChunkId(KEY, 0)])
    assert not placement.holds(KEY) and placement.count() == 0


def test_a_chunk_that_came_and_went_between_reports_is_gone() -> None:
    placement = CpuPlacement(world_size=1)
    placement.update([ChunkId(KEY, 0)], [ChunkId(KEY, 0)])
    assert not placement.holds(KEY)

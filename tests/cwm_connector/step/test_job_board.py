"""job_board.py and locations.py: what several ranks report becomes one answer."""

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, TierName
from cwm_connector.step.job_board import JobBoard
from cwm_connector.step.jobs import ChunkOutcome, ClaimedChunk, DropJob, Phase, Report

KEY = ChunkKey(b"k" * 32)


def drop(board: JobBoard) -> DropJob:
    return DropJob(board.next_id(), (ClaimedChunk(KEY, NO_CLAIM),), (TierName.CPU,))


def finished(job: DropJob, rank: int, tier: TierName = TierName.CPU, failure: tuple[Code, str] | None = None) -> Report:
    return Report(job.id, rank, Phase.FINISHED, 1, (ChunkOutcome(KEY, tier, 10),), failure, seconds=float(rank))


def test_a_job_is_done_when_every_rank_has_finished_it() -> None:
    board = JobBoard(world_size=2)
    job = drop(board)
    ticket = board.post(job)
    assert board.take() == [job] and board.take() == []
    board.deliver([finished(job, 0)])
    assert not ticket.finished.done()
    board.deliver([finished(job, 1, TierName.DISK)])
    result = ticket.finished.result(0)
    assert (result.outcomes[KEY].size_bytes, result.outcomes[KEY].tier, result.seconds) == (20, TierName.DISK, 1.0)


def test_blocks_are_captured_when_every_rank_has_read_them() -> None:
    board = JobBoard(world_size=2)
    job = drop(board)
    ticket = board.post(job)
    board.deliver([Report(job.id, 0, Phase.CAPTURED)])
    assert not ticket.captured.done()
    board.deliver([Report(job.id, 1, Phase.CAPTURED)])
    assert ticket.captured.done()


def test_one_rank_s_failure_fails_the_job_after_all_have_ended() -> None:
    board = JobBoard(world_size=2)
    job = drop(board)
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
    job = drop(board)
    board.post(job, seen.append)
    board.deliver([Report(job.id, 0, Phase.RUNNING, done=3), Report(job.id, 1, Phase.RUNNING, done=1)])
    assert seen == [1]


def test_a_report_of_an_unknown_job_is_ignored() -> None:
    JobBoard(world_size=1).deliver([Report(99, 0, Phase.FINISHED)])  # type: ignore[arg-type]


def test_a_shutdown_ends_every_wait() -> None:
    board = JobBoard(world_size=1)
    ticket = board.post(drop(board))
    board.fail_all(CWMError(Code.ENGINE_UNREACHABLE, "gone"))
    with pytest.raises(CWMError, match="CWM-5001"):
        ticket.finished.result(0)

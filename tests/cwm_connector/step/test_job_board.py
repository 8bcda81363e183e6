"""job_board.py and locations.py: what several ranks report becomes one answer."""

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM, ChunkKey, TierName
from cwm_connector.step.job_board import SILENCE_S, JobBoard
from cwm_connector.step.jobs import ChunkOutcome, ClaimedChunk, DropJob, Phase, Report, RollCall

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


def test_a_job_that_nobody_reports_is_named_and_asked_about_until_its_worker_says_that_it_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    board = JobBoard(world_size=1, clock=lambda: now[0])
    ticket = board.post(drop(board))
    board.take()
    now[0] = SILENCE_S - 1
    assert board.take() == []
    now[0] = 2 * SILENCE_S
    assert board.take() == [RollCall((ticket.job,))] and f"DropJob {ticket.job.id}" in caplog.text
    now[0] += SILENCE_S / 2
    assert board.take() == []
    now[0] += SILENCE_S
    assert board.take() == [RollCall((ticket.job,))]
    board.deliver([Report(ticket.job.id, 0, Phase.FINISHED, failure=(Code.INTERNAL, "lost"))])
    with pytest.raises(CWMError, match="lost"):
        ticket.finished.result(0)


def test_a_job_that_is_reported_now_and_then_is_not_asked_about() -> None:
    now = [0.0]
    board = JobBoard(world_size=1, clock=lambda: now[0])
    ticket = board.post(drop(board))
    board.take()
    for _ in range(9):
        now[0] += SILENCE_S / 2
        board.deliver([Report(ticket.job.id, 0, Phase.RUNNING)])
        assert board.take() == []


def test_a_report_that_can_t_be_taken_in_costs_no_other_job() -> None:
    def broken(_: int) -> None:
        raise RuntimeError("the loop is closed")

    board = JobBoard(world_size=1)
    first, second = board.post(drop(board), broken), board.post(drop(board))
    board.deliver([finished(first.job, 0), finished(second.job, 0)])  # type: ignore[arg-type]
    assert first.finished.done() and second.finished.done()


def test_the_first_word_of_a_rank_about_a_job_s_end_counts() -> None:
    board = JobBoard(world_size=2)
    ticket = board.post(drop(board))
    board.deliver([finished(ticket.job, 0), finished(ticket.job, 0, failure=(Code.INTERNAL, "lost"))])  # type: ignore[arg-type]
    board.deliver([finished(ticket.job, 1)])  # type: ignore[arg-type]
    assert ticket.finished.result(0).outcomes


def test_chunks_are_captured_from_the_end_as_far_as_every_rank_has_read_them() -> None:
    board = JobBoard(world_size=2)
    ticket = board.post(drop(board))
    seen: list[int] = []
    ticket.on_captured = seen.append
    for rank, captured in ((0, 3), (1, 1), (1, 2)):
        board.deliver([Report(ticket.job.id, rank, Phase.RUNNING, captured=captured)])
    assert seen == [1, 2] and not ticket.captured.done()

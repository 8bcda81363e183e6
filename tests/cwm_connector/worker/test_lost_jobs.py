"""worker.py: what becomes of a job that got lost before the worker, or inside it."""

import threading
from pathlib import Path

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import NO_CLAIM, TierName
from cwm_connector.step.job_board import SILENCE_S, Ticket
from cwm_connector.step.jobs import FailedLoad, LoadJob, PromoteJob, SaveJob, Work
from tests.cwm_connector.worker.ranks import Rank, parts, specs
from tests.support.clock import Clock

CHUNKS = specs(4)


def jobs() -> list[Work]:
    return [
        SaveJob(1, parts(CHUNKS, 0), (TierName.DISK,), NO_CLAIM),  # type: ignore[arg-type]
        LoadJob(1, "r", parts(CHUNKS, 10)),  # type: ignore[arg-type]
        PromoteJob(1, CHUNKS),  # type: ignore[arg-type]
    ]


def after_silence(rank: Rank, clock: Clock) -> None:
    """Play a step after so long a silence that the workers are asked."""
    clock.now += 2 * SILENCE_S
    rank.side.submit(rank.board.take())
    if (reports := rank.side.take_reports()) is not None:
        rank.board.deliver(reports.reports)


def failure(ticket: Ticket) -> str:
    with pytest.raises(CWMError) as caught:
        ticket.finished.result(0)
    return str(caught.value)


@pytest.mark.parametrize("job", jobs(), ids=lambda job: type(job).__name__)
def test_a_job_that_never_reached_the_worker_ends_as_failed(tmp_path: Path, job: Work) -> None:
    clock = Clock()
    rank = Rank(tmp_path, clock=clock)
    ticket = rank.board.post(job)
    rank.board.take()  # the hook that hands it over has failed
    after_silence(rank, clock)
    if isinstance(job, LoadJob):
        assert ticket.finished.result(0).outcomes[CHUNKS[0].key].failure is not None
        assert rank.side.take_loaded() == {"r"} and rank.side.take_bad_blocks() == {10, 11, 12, 13}
    else:
        assert "got lost" in failure(ticket)
    assert ticket.captured.done()
    rank.side.close()


def test_a_report_that_never_arrived_fails_its_job_and_does_not_end_the_request_s_load_again(tmp_path: Path) -> None:
    clock = Clock()
    rank = Rank(tmp_path, clock=clock)
    rank.save(CHUNKS)
    ticket = rank.board.post(LoadJob(rank.board.next_id(), "r", parts(CHUNKS, 10)))
    rank.side.submit(rank.board.take())
    while not rank.side.take_loaded():
        pass
    rank.side.take_reports()  # the hook that passes them on has failed
    after_silence(rank, clock)
    assert "got lost" in failure(ticket)
    assert rank.side.take_loaded() == set() and rank.side.take_bad_blocks() == set()
    rank.side.close()


def test_a_job_that_waits_for_its_turn_is_not_lost(tmp_path: Path) -> None:
    clock, busy = Clock(), threading.Event()
    rank = Rank(tmp_path, clock=clock)
    rank.side._save_thread.submit(busy.wait, 60)
    ticket = rank.board.post(SaveJob(rank.board.next_id(), parts(CHUNKS, 0), (TierName.DISK,), NO_CLAIM))
    rank.side.submit(rank.board.take())
    after_silence(rank, clock)
    assert not ticket.finished.done()
    busy.set()
    while not ticket.finished.done():
        after_silence(rank, clock)
    assert len(ticket.finished.result(0).outcomes) == 2
    rank.side.close()


@pytest.mark.parametrize("job", jobs()[1:], ids=lambda job: type(job).__name__)
def test_a_job_whose_way_can_t_be_chosen_ends_as_failed(
    tmp_path: Path, job: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> bool:
        raise RuntimeError("broken on purpose")

    rank = Rank(tmp_path)
    monkeypatch.setattr(rank.side._chunk_reader, "pin_all", refuse)
    ticket = rank.run(job)
    if isinstance(job, LoadJob):
        assert rank.side.take_loaded() == {"r"} and rank.side.take_bad_blocks() == {10, 11, 12, 13}
    else:
        assert "CWM-9001" in failure(ticket)
    rank.side.close()


def test_a_load_that_could_not_be_planned_is_computed(tmp_path: Path) -> None:
    rank = Rank(tmp_path)
    assert "could not be planned" in failure(rank.run(FailedLoad(rank.board.next_id(), "r", (7, 8))))
    assert rank.side.take_loaded() == {"r"} and rank.side.take_bad_blocks() == {7, 8}
    rank.side.close()

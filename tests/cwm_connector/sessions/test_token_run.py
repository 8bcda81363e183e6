"""sessions/token_run.py: tokens are left in a request's list, and packed a part at a time."""

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.sessions.token_run import PACKED_IN_A_STEP, TokenRun
from tests.cwm_connector.step.test_scheduler import Side
from tests.support.vllm_parts import request


class Source(list[int]):
    """A request's list that notes how many tokens are read at a time."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))
        self.read: list[int] = []

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.read.append(len(found))
        return found


@pytest.fixture(autouse=True)
def every_list_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenRun, "part_length", 3)


def mixed() -> TokenRun:
    """Return a run of the tokens 0 to 29 in an array, a list and an array."""
    run = TokenRun(array("i", range(10)))
    run.append(TokenRun.of_list(list(range(100)), 10, 20))
    run.append(TokenRun(array("i", range(20, 30))))
    return run


@given(st.integers(0, 35), st.integers(0, 35), st.lists(st.integers(1, 6), max_size=5))
def test_a_run_reads_like_its_tokens_however_much_of_it_is_packed(start: int, end: int, packs: list[int]) -> None:
    run, tokens = mixed(), array("i", range(30))
    for limit in packs:
        run.pack(limit)
    assert len(run) == 30 and run.ids(start, end) == tokens[start:end]
    part = run.part(start, end)
    assert (len(part), part.packed()) == (len(tokens[start:end]), tokens[start:end])
    run.append(part)
    assert run.packed() == tokens + tokens[start:end] and run.is_packed


def test_no_call_reads_more_of_a_list_than_it_may() -> None:
    source = Source(500)
    run = TokenRun.of_list(source, 0, len(source))
    run.part(5, 400)
    assert source.read == [] and not run.is_packed
    assert [run.pack(100) for _ in range(6)] == [100, 100, 100, 100, 100, 0]
    assert max(source.read) == 3 and run.is_packed


def test_the_end_of_a_long_request_packs_nothing_and_each_step_after_it_a_part() -> None:
    side = Side()
    one = request(range(3 * PACKED_IN_A_STEP), session_id="alice")
    side.scheduler.request_added(one)
    one.num_computed_tokens = one.num_tokens
    side.scheduler.request_finished(one)
    steps = 0
    while side.scheduler.wants_step:
        side.scheduler.step_jobs()
        steps += 1
    assert steps == 3, "an idle engine goes on until the list is free"
    assert side.scheduler.snapshot("alice", None).token_ids == array("i", range(one.num_tokens))


def test_a_snapshot_of_an_unpacked_head_does_not_change_any_more() -> None:
    side = Side()
    one = request(range(200), session_id="alice")
    side.scheduler.request_added(one)
    one.num_computed_tokens = 200
    snapshot = side.scheduler.snapshot("alice", None)
    one.append_output_token_ids([7] * 40)
    one.num_computed_tokens = 240
    side.scheduler.request_finished(one)
    assert list(snapshot.token_ids) == list(range(200))

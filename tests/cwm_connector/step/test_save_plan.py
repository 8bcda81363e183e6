"""save_plan.py: a long save is planned a chunk at a time, and what was found stays in vLLM's cache meanwhile."""

from collections.abc import Iterator, Sequence

import pytest

from cwm_connector.step.jobs import SaveJob
from cwm_connector.step.save_plan import SavePlan
from tests.cwm_connector.step.test_scheduler import Side, order, specs
from tests.support.surveys import everything
from tests.support.vllm_parts import request


def planning(side: Side, tokens: int) -> Iterator[Sequence[SavePlan]]:
    side.serve(request(range(tokens), session_id="alice"))
    return side.scheduler.plan_save(side.scheduler.snapshot("alice", None), order(specs(range(tokens))))


def test_blocks_stay_pinned_between_two_steps_of_a_plan() -> None:
    side = Side()
    parts = planning(side, 96)
    free = side.free()
    for chunks in (1, 2):
        assert next(parts) == () and side.free() == free - 2 * chunks
    side.pool.free_blocks(side.pool.get_new_blocks(side.free() - 2))
    (plan,) = everything(parts)
    (job,) = side.scheduler.step_jobs().jobs
    assert plan.ticket is not None and isinstance(job, SaveJob)
    assert [part.chunk for part in job.chunks] == list(specs(range(96)))


def test_a_plan_that_meets_a_lost_block_late_lets_go_of_what_it_has_pinned() -> None:
    side = Side()
    parts = planning(side, 96)
    free = side.free()
    next(parts)
    side.pool.get_new_blocks(side.free() - 1)
    left = side.free()
    (plan,) = everything(parts)
    assert (plan.ticket, plan.whole_chunks) == (None, 0) and plan.lost_blocks >= 2
    assert side.free() == left + 2 and free > left and not side.scheduler.step_jobs().jobs


def test_nothing_stays_pinned_when_a_plan_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side()
    parts = planning(side, 96)
    free = side.free()
    next(parts)
    monkeypatch.setattr(side.pool, "get_cached_block", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        everything(parts)
    assert side.free() == free


def test_vllm_is_not_told_to_wait_for_a_save_that_is_still_planned() -> None:
    side = Side()
    parts = planning(side, 96)
    next(parts)
    assert not side.scheduler.frees_blocks_soon()
    everything(parts)
    assert side.scheduler.frees_blocks_soon()

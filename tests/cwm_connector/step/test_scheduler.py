"""scheduler.py against vLLM's own block pool and requests; the workers are played by the test."""

from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from cwm_connector import compat
from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec, Geometry, Passport, chunk_specs
from cwm_connector.core.types import NO_CLAIM, Micros, TierName, now_micros, salt_hash
from cwm_connector.metrics import Metrics
from cwm_connector.sessions.index import EXPIRES_AFTER, SessionIndex
from cwm_connector.sessions.thaw_bindings import BoundWindow, ThawBindings
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.job_board import JobBoard
from cwm_connector.step.jobs import ChunkOutcome, FailedLoad, LoadJob, Phase, Report, SaveJob, StepReports
from cwm_connector.step.save_plan import SaveOrder
from cwm_connector.step.scheduler import SchedulerSide
from cwm_connector.step.step_queue import StepQueue
from cwm_connector.step.window_matches import WindowMatches
from cwm_connector.tiers.base import ChunkId
from tests.support.surveys import everything
from tests.support.vllm_parts import BLOCK_TOKENS, compute, new_pool, request

GEOMETRY = Geometry.of(BLOCK_TOKENS, 2 * BLOCK_TOKENS)
PASSPORT = Passport({"weights": "w"})


class Side:
    """A scheduler side with its neighbours and a real pool of 32 blocks."""

    def __init__(self, clock: Callable[[], Micros] = now_micros) -> None:
        self.pool = new_pool(32)
        self.thaw_bindings = ThawBindings()
        self.window_matches = WindowMatches(GEOMETRY, self.thaw_bindings)
        self.board = JobBoard(world_size=1)
        self.locations = ChunkLocations(world_size=1)
        self.metrics = Metrics()
        self.woken = 0
        self.step_queue = StepQueue(self._wake)
        self.sessions = SessionIndex("m", BLOCK_TOKENS, self.thaw_bindings.thawed_into, clock=clock)
        self.scheduler = SchedulerSide(
            GEOMETRY, self.sessions, self.window_matches, self.board, self.step_queue, self.locations, self.metrics
        )
        self.scheduler.bind_pool(self.pool)

    def _wake(self) -> None:
        self.woken += 1

    def serve(self, one: Any) -> None:
        """A request from beginning to end, its blocks left to the prefix cache."""
        self.scheduler.request_added(one)
        blocks = compute(self.pool, one)
        self.scheduler.request_finished(one)
        self.pool.free_blocks(reversed(blocks))

    def free(self) -> int:
        return int(self.pool.get_num_free_blocks())

    def thaw(self, token_ids: range, session: str = "bob", salt: str = "cwm-1") -> BoundWindow:
        window = BoundWindow("w", array("i", token_ids), specs(token_ids), len(token_ids) // BLOCK_TOKENS)
        self.thaw_bindings.bind(session, salt_hash(salt), window)
        return window

    def finish(self, job: Any, *outcomes: ChunkOutcome, failure: Any = None) -> None:
        self.scheduler.deliver(StepReports([Report(job.id, 0, Phase.FINISHED, 0, outcomes, failure)]))


def order(chunks: tuple[ChunkSpec, ...]) -> SaveOrder:
    return SaveOrder(chunks, (TierName.DISK,), NO_CLAIM)


@dataclass
class Blocks:
    ids: list[int]

    def get_block_ids(self) -> tuple[list[int], ...]:
        return (self.ids,)


def specs(token_ids: Iterable[int]) -> tuple[ChunkSpec, ...]:
    return chunk_specs(PASSPORT, GEOMETRY, array("i", token_ids))


def good(chunk: ChunkSpec) -> ChunkOutcome:
    return ChunkOutcome(chunk.key, TierName.DISK, 1)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_a_save_holds_the_session_s_blocks_until_they_are_captured() -> None:
    side = Side()
    side.serve(request(range(64), session_id="alice"))
    free = side.free()
    snapshot = side.scheduler.snapshot("alice", None)
    (plan,) = everything(side.scheduler.plan_save(snapshot, order(specs(range(64)))))
    (job,) = side.scheduler.step_jobs().jobs
    assert isinstance(job, SaveJob) and [len(part.block_ids) for part in job.chunks] == [2, 2]
    assert side.free() == free - 4
    side.scheduler.deliver(StepReports([Report(job.id, 0, Phase.CAPTURED)]))
    assert side.free() == free
    assert plan.ticket is not None and not plan.ticket.finished.done()


def test_a_save_gives_blocks_back_as_they_are_captured_and_vllm_is_told_that_more_will_come() -> None:
    side = Side()
    side.serve(request(range(96), session_id="alice"))
    free = side.free()
    everything(side.scheduler.plan_save(side.scheduler.snapshot("alice", None), order(specs(range(96)))))
    (job,) = side.scheduler.step_jobs().jobs
    assert isinstance(job, SaveJob)
    for captured in range(3):
        assert side.free() == free - 6 + 2 * captured and side.scheduler.frees_blocks_soon()
        side.scheduler.deliver(StepReports([Report(job.id, 0, Phase.RUNNING, captured=captured + 1)]))
    assert side.free() == free and not side.scheduler.frees_blocks_soon()


def test_blocks_are_let_go_when_a_save_fails() -> None:
    side = Side()
    side.serve(request(range(64), session_id="alice"))
    free = side.free()
    snapshot = side.scheduler.snapshot("alice", None)
    (plan,) = everything(side.scheduler.plan_save(snapshot, order(specs(range(64)))))
    (job,) = side.scheduler.step_jobs().jobs
    side.finish(job, failure=(Code.WRITE_FAILED, "no disk"))
    assert side.free() == free
    assert plan.ticket is not None
    with pytest.raises(CWMError, match="CWM-4001"):
        plan.ticket.finished.result()


def test_an_evicted_block_is_counted_and_nothing_is_held() -> None:
    side = Side()
    side.serve(request(range(64), session_id="alice"))
    snapshot = side.scheduler.snapshot("alice", None)
    side.pool.get_new_blocks(29)  # 31 are free: vLLM's null block is never given away
    free = side.free()
    (plan,) = everything(side.scheduler.plan_save(snapshot, order(specs(range(64)))))
    assert plan.ticket is None and plan.lost_blocks == 2
    assert side.free() == free and not side.scheduler.step_jobs().jobs


@pytest.mark.parametrize("wanted", [True, False])
def test_a_recompute_s_blocks_are_pinned_while_they_are_wanted_and_it_is_no_session_s_turn(wanted: bool) -> None:
    side = Side()
    free = side.free()
    stored = BoundWindow("", array("i", range(64)), specs(range(64)), usable_blocks=2)
    future = side.scheduler.expect_recompute("cwm-1", stored)
    ours = request(range(64), request_id="cwm-1", session_id="alice")
    side.scheduler.request_added(ours)
    assert side.scheduler.matched_tokens(ours, 0) == 32
    blocks = compute(side.pool, ours)
    assert side.scheduler.recomputed_tokens("cwm-1") == 64
    assert wanted or future.cancel()
    side.scheduler.request_finished(ours)
    side.pool.free_blocks(reversed(blocks))
    assert everything(side.scheduler.session_views()) == []
    if wanted:
        done = future.result(0)
        assert side.free() == free - 4 and done.computed_tokens == 32
        done.blocks.release_all()
    assert side.free() == free


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_thawed_session_loads_its_window_and_computes_at_least_one_token() -> None:
    side = Side()
    side.thaw(range(64))
    assert side.scheduler.matched_tokens(request(range(80), session_id="bob"), 0) == 64
    assert side.scheduler.matched_tokens(request(range(64), session_id="bob"), 0) == 48
    assert side.scheduler.matched_tokens(request(range(64), cache_salt="cwm-1"), 0) == 48


def test_nobody_else_loads_it() -> None:
    side = Side()
    side.thaw(range(64))
    for stranger in (request(range(80)), request(range(80), session_id="eve"), request(range(80), cache_salt="cwm-2")):
        assert side.scheduler.matched_tokens(stranger, 0) == 0


def test_only_what_the_prefix_cache_lacks_is_loaded_into_the_request_s_own_blocks() -> None:
    side = Side()
    side.thaw(range(64))
    one = request(range(80), session_id="bob")
    assert side.scheduler.matched_tokens(one, 16) == 48
    side.scheduler.blocks_allocated(one, Blocks([7, 3, 9, 1, 5]), 48)
    (job,) = side.scheduler.step_jobs().jobs
    assert isinstance(job, LoadJob) and job.request_id == "r"
    assert [(part.first, part.block_ids) for part in job.chunks] == [(1, (3,)), (0, (9, 1))]


def test_a_request_with_an_adapter_loads_nothing() -> None:
    side = Side()
    side.thaw(range(64))
    one = request(range(80), session_id="bob")
    one.lora_request = object()
    assert side.scheduler.matched_tokens(one, 0) == 0


def test_where_a_load_came_from_is_told_by_tier() -> None:
    side = Side()
    window = side.thaw(range(64))
    side.locations.update([ChunkId(window.chunks[0].key, 0)], [])
    one = request(range(80), session_id="bob")
    side.scheduler.matched_tokens(one, 0)
    side.scheduler.blocks_allocated(one, Blocks(list(range(5))), 64)
    assert side.scheduler.hit_sources(one) == {TierName.CPU: 32, TierName.DISK: 32}


def test_a_bad_chunk_ends_what_is_offered_and_its_request_is_not_offered_anything_again() -> None:
    side = Side()
    window = side.thaw(range(64))
    one = request(range(80), session_id="bob")
    side.scheduler.matched_tokens(one, 0)
    side.scheduler.blocks_allocated(one, Blocks(list(range(5))), 64)
    (job,) = side.scheduler.step_jobs().jobs
    bad = ChunkOutcome(window.chunks[1].key, None, 0, (Code.CORRUPT, "checksum"))
    side.finish(job, good(window.chunks[0]), bad)
    assert side.scheduler.matched_tokens(one, 0) == 0
    assert side.scheduler.matched_tokens(request(range(80), request_id="r2", session_id="bob"), 0) == 32
    assert side.metrics.hits_and_misses() == (1, 1)


def test_a_chunk_that_could_not_be_read_this_time_is_offered_to_the_next_request() -> None:
    side = Side()
    window = side.thaw(range(64))
    one = request(range(80), session_id="bob")
    side.scheduler.matched_tokens(one, 0)
    side.scheduler.blocks_allocated(one, Blocks(list(range(5))), 64)
    (job,) = side.scheduler.step_jobs().jobs
    side.finish(job, ChunkOutcome(window.chunks[0].key, None, 0, (Code.READ_FAILED, "time-out")))
    assert side.scheduler.matched_tokens(one, 0) == 0
    assert side.scheduler.matched_tokens(request(range(80), request_id="r2", session_id="bob"), 0) == 64


@pytest.mark.parametrize("offered", [True, False])
def test_a_load_that_can_t_be_planned_is_computed_rather_than_waited_for(
    offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Side()
    side.thaw(range(64))
    one = request(range(80), session_id="bob")
    if offered:
        side.scheduler.matched_tokens(one, 16)
        monkeypatch.setattr(side.locations, "fastest", lambda _: 1 / 0)
    side.scheduler.blocks_allocated(one, Blocks([7, 3, 9, 1, 5]), 48)
    (job,) = side.scheduler.step_jobs().jobs
    assert isinstance(job, FailedLoad)
    assert job.block_ids == ((3, 9, 1) if offered else (7, 3, 9, 1, 5))
    assert side.scheduler.matched_tokens(one, 0) == 0


# --- the step queue ---------------------------------------------------------------------------------------------------


def test_what_other_threads_ask_for_is_done_in_the_next_step_and_wakes_the_engine() -> None:
    side = Side()
    answer = side.step_queue.call(lambda: 42)
    assert side.woken == 1 and side.scheduler.wants_step and not answer.done()
    side.scheduler.step_jobs()
    assert answer.result(0) == 42 and not side.scheduler.wants_step


def test_what_they_raise_goes_back_to_them() -> None:
    side = Side()
    answer: Future[None] = side.step_queue.call(lambda: 1 / 0)  # type: ignore[arg-type]
    side.scheduler.step_jobs()
    with pytest.raises(ZeroDivisionError):
        answer.result(0)


def test_a_call_that_was_given_up_is_not_carried_out() -> None:
    side = Side()
    done: list[int] = []
    side.step_queue.call(lambda: done.append(1)).cancel()
    side.scheduler.step_jobs()
    assert not done


def test_sessions_are_listed_with_what_the_prefix_cache_still_has() -> None:
    side = Side()
    side.serve(request(range(64), session_id="alice"))
    ((view, cached),) = everything(side.scheduler.session_views())
    assert (view.session_id, cached) == ("alice", 64)
    side.pool.get_new_blocks(29)
    assert everything(side.scheduler.session_views())[0][1] == 32


def test_a_head_is_near_eviction_when_the_block_at_its_end_is() -> None:
    side = Side()
    side.serve(request(range(256), session_id="alice"))
    side.serve(request(range(1000, 1256), session_id="bob"))
    assert {head.session_id: head.near_eviction for head in everything(side.scheduler.freezable(0.25))} == {
        "alice": True,  # its end is gone, 31 blocks are not enough for both
        "bob": False,
    }
    (alice,) = [head for head in everything(side.scheduler.freezable(0.25)) if head.session_id == "alice"]
    assert (alice.token_count, alice.unfrozen_tokens, alice.is_default, alice.running) == (256, 256, True, False)


def test_what_a_snapshot_holds_is_frozen_once_it_is_marked() -> None:
    side = Side()
    side.serve(request(range(256), session_id="alice"))
    snapshot = side.scheduler.snapshot("alice", None)
    side.serve(request(range(272), session_id="alice"))
    list(side.scheduler.mark_frozen(snapshot))
    (head,) = everything(side.scheduler.freezable(0.25))
    assert head.unfrozen_tokens == 16 and head.activity > snapshot.activity
    side.scheduler.mark_covered("alice", "h1", 272)
    assert everything(side.scheduler.freezable(0.25)) == []


def test_sessions_under_one_system_prompt_expire_while_others_keep_it_cached() -> None:
    now = [0]
    side = Side(lambda: Micros(now[0]))
    system = list(range(32))
    for number in range(20):
        side.serve(request([*system, *range(1000 * number, 1000 * number + 64)], session_id=f"s{number}"))
        now[0] += 1
    now[0] += EXPIRES_AFTER
    for number in range(20):
        side.serve(request([*system, *range(70_000, 70_032)], f"r{number}", session_id="busy"))
    expired = {view.session_id for view, _ in everything(side.scheduler.session_views()) if view.expired}
    assert len(expired) >= 14, "the pool has blocks of the last few only"
    assert compat.cached_blocks(side.pool, request(system).block_hashes)[0] is not None

"""step/boundaries/plan.py with vLLM's own KV cache manager: what is pinned is what vLLM would resume from."""

from array import array
from typing import Any

import pytest

from cwm_connector import compat
from cwm_connector.core.identity import Geometry, Passport, window_chunks
from cwm_connector.core.types import NO_CLAIM, TierName
from cwm_connector.step.boundaries.plan import BoundaryPlanner
from cwm_connector.step.job_board import JobBoard
from cwm_connector.step.jobs import SaveJob
from cwm_connector.step.pinned_blocks import PinnedBlocks
from cwm_connector.step.save_plan import Recomputed, SaveOrder, SavePlan
from tests.support.hybrid_parts import config, full, local, manager, prefill, sliding, state
from tests.support.vllm_parts import BLOCK_TOKENS as BLOCK

PASSPORT = Passport({"weights": "w1"})
MODELS = {
    "sliding": (sliding(), full()),
    "states": (state(), full(), state()),
    "local": (local(), full()),
    "unequal": (sliding(80, 2 * BLOCK), full()),
    "window alone": (sliding(),),
}


class Planned:
    """The cache of one model, and the plan of a freeze of `tokens` tokens."""

    def __init__(self, specs: tuple[Any, ...], tokens: int) -> None:
        self.manager = manager(*specs)
        told = config(*specs)
        self.geometry = Geometry(compat.block_tokens(told), 2, compat.cache_groups(told))
        self.planner = BoundaryPlanner(
            self.geometry, compat.hash_tokens(told), self.manager.block_pool, self.manager.coordinator
        )
        self.pinned, self.board = PinnedBlocks(), JobBoard(1)
        self.tokens = array("i", range(1, tokens + 1))
        self.request = prefill(self.manager, self.tokens, self.geometry.block_tokens)

    def plan(self, *boundaries: int) -> SavePlan:
        chunks = window_chunks(PASSPORT, self.geometry, self.tokens, boundaries)
        order = SaveOrder(chunks=chunks, tiers=(TierName.DISK,), claim=NO_CLAIM)
        parts = list(self.planner.plan(self.pinned, self.board, self.request.block_hashes, order))
        (plan,) = parts[-1]
        return plan


@pytest.mark.parametrize("specs", MODELS.values(), ids=MODELS)
def test_the_blocks_of_a_save_are_those_that_vllm_would_resume_from(specs: tuple[Any, ...]) -> None:
    model = Planned(specs, tokens=8 * BLOCK + 1)
    end = 8 * BLOCK // model.geometry.block_tokens
    assert model.plan(end).ticket is not None
    (job,) = model.board.take()
    assert isinstance(job, SaveJob)
    blocks, tokens, _ = model.manager.coordinator.find_longest_cache_hit(model.request.block_hashes, 8 * BLOCK)
    assert tokens == 8 * BLOCK
    for group, of_group in enumerate(blocks):
        saved = [block for part in job.chunks if part.chunk.group == group for block in part.block_ids]
        assert saved == [block.block_id for block in of_group if not block.is_null]
    assert all(len(part.block_ids) == part.chunk.page_count for part in job.chunks)


def test_a_session_that_vllm_can_not_resume_at_its_end_is_lost_and_says_where_it_can() -> None:
    model = Planned(MODELS["sliding"], tokens=8 * BLOCK + 1)
    window = model.manager.coordinator.single_type_managers[0].req_to_blocks[model.request.request_id]
    model.manager.block_pool.evict_blocks({window[7].block_id})
    free = model.manager.block_pool.get_num_free_blocks()
    plan = model.plan(8)
    assert (plan.ticket, plan.boundary) == (None, 0)
    assert model.manager.block_pool.get_num_free_blocks() == free and not model.board.take()


def test_a_block_that_vllm_reuses_while_a_save_is_planned_is_lost() -> None:
    model = Planned(MODELS["sliding"], tokens=8 * BLOCK + 1)
    chunks = window_chunks(PASSPORT, model.geometry, model.tokens, (8,))
    order = SaveOrder(chunks=chunks, tiers=(TierName.DISK,), claim=NO_CLAIM)
    parts = model.planner.plan(model.pinned, model.board, model.request.block_hashes, order)
    assert next(parts) == ()
    first = model.manager.coordinator.single_type_managers[1].req_to_blocks[model.request.request_id][0]
    model.manager.block_pool.evict_blocks({first.block_id})
    *_, last = parts
    assert last[0].ticket is None and not model.board.take()


def test_what_a_prompt_of_ours_has_computed_is_pinned_before_its_request_lets_go() -> None:
    model = Planned(MODELS["states"], tokens=4 * BLOCK + 1)
    save, sizes = model.planner.pin_prompt(model.pinned, model.request)
    model.manager.free(model.request)
    pool = model.manager.block_pool
    pool.free_blocks(pool.get_new_blocks(pool.get_num_free_blocks()))
    assert model.planner.boundary(model.request.block_hashes).tokens == 4 * BLOCK
    found = model.planner.boundary(model.request.block_hashes)
    of_groups = Recomputed(save, sizes, 0).ids_by_group()
    assert of_groups == tuple(tuple(block.block_id for block in of if not block.is_null) for of in found.blocks)
    assert sizes == (1, 4, 1), "a state, full attention and another state"
    save.release_all()
    pool.free_blocks(pool.get_new_blocks(pool.get_num_free_blocks()))
    assert model.planner.boundary(model.request.block_hashes).tokens == 0


def test_a_session_is_near_eviction_with_the_first_block_that_it_could_not_be_resumed_without() -> None:
    model = Planned(MODELS["sliding"], tokens=8 * BLOCK + 1)
    blocks = model.planner.last_blocks(model.request.block_hashes)
    assert len(blocks) == 3 + 1  # a window of 40 tokens, and the end of full attention
    model.manager.block_pool.evict_blocks({blocks[0].block_id})
    assert not model.planner.last_blocks(model.request.block_hashes)

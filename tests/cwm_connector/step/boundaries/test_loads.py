"""step/boundaries/loads.py with vLLM's own KV cache manager: a load fills the blocks that vLLM allocates for it."""

from array import array
from typing import Any

import pytest

from cwm_connector import compat
from cwm_connector.core.identity import Geometry, Passport, boundaries_of, window_chunks
from cwm_connector.sessions.thaw_bindings import BoundWindow
from cwm_connector.step.boundaries.loads import BoundaryRun
from cwm_connector.step.window_matches import Match
from tests.cwm_connector.step.boundaries.test_plan import MODELS
from tests.support.hybrid_parts import config, manager, prefill
from tests.support.vllm_parts import BLOCK_TOKENS as BLOCK
from tests.support.vllm_parts import request

PASSPORT = Passport({"weights": "w1"})
TOKENS = array("i", range(1, 8 * BLOCK + 1))


def window_of(geometry: Geometry, *ends: int) -> BoundWindow:
    chunks = window_chunks(PASSPORT, geometry, TOKENS, ends)
    return BoundWindow("w", TOKENS, chunks, chunks[-1].end_block, boundaries_of(geometry, chunks))


@pytest.mark.parametrize("local_blocks", [0, 4])
@pytest.mark.parametrize("specs", MODELS.values(), ids=MODELS)
def test_a_load_fills_what_vllm_allocates_up_to_the_boundary_and_nothing_else(
    specs: tuple[Any, ...], local_blocks: int
) -> None:
    cache, told = manager(*specs), config(*specs)
    geometry = Geometry(compat.block_tokens(told), 2, compat.cache_groups(told))
    if local_blocks:
        cache.free(prefill(cache, [*TOKENS[: local_blocks * BLOCK], 9], geometry.block_tokens, request_id="before"))
    one = request([*TOKENS, 9])
    found, computed = cache.get_computed_blocks(one)[:2]
    assert computed == local_blocks * BLOCK
    more = len(TOKENS) - computed
    assert cache.allocate_slots(one, 0, computed, found, num_external_computed_tokens=more, delay_cache_blocks=True)
    ids = cache.get_block_ids(one.request_id)
    match = Match(window_of(geometry, 8 * BLOCK // geometry.block_tokens), computed // geometry.block_tokens, 0, False)
    match = Match(match.window, match.from_block, match.window.boundaries[-1], automatic=False)
    run = BoundaryRun(geometry, match, ids)
    assert sum(run.block_counts()) * geometry.block_tokens == more
    for group, of_group in enumerate(ids):
        start = geometry.pages_of(group, match.from_block)
        filled = [block for part in run if part.chunk.group == group for block in part.block_ids]
        assert filled == [block for block in of_group[start:] if block]


def test_a_load_that_would_leave_a_block_unfilled_is_not_begun() -> None:
    told = config(*MODELS["sliding"])
    geometry = Geometry(compat.block_tokens(told), 2, compat.cache_groups(told))
    match = Match(window_of(geometry, 4, 8), 0, 8, automatic=False)
    with pytest.raises(ValueError, match="group 0 wants blocks"):
        BoundaryRun(geometry, match, ([5] * 8, list(range(11, 19))))


def test_a_window_offers_its_last_boundary_that_the_request_agrees_with() -> None:
    told = config(*MODELS["states"])
    geometry = Geometry(compat.block_tokens(told), 2, compat.cache_groups(told))
    window = window_of(geometry, 4, 8)
    assert [window.loadable(common) for common in (3, 4, 7, 8)] == [0, 4, 4, 8]
    window.usable_blocks = window.chunks[-1].usable_without
    assert window.loadable(8) == 4

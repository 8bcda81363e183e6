"""core/groups.py and the windows of models with several kinds of attention in core/identity.py."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwm_connector.core.groups import CacheGroup, GroupKind, HeadShape
from cwm_connector.core.identity import (
    Geometry,
    Passport,
    boundaries_of,
    chunk_specs,
    specs_of,
    why_not_all,
    window_chunks,
)

PASSPORT = Passport({"weights": "w1"})
FULL, COARSE_FULL = CacheGroup(GroupKind.FULL, 4), CacheGroup(GroupKind.FULL, 8)
WINDOW, LOCAL = CacheGroup(GroupKind.WINDOW, 4, reach=10), CacheGroup(GroupKind.LOCAL, 8, reach=16)
STATE = CacheGroup(GroupKind.STATE, 8)
MODELS = [
    (FULL, WINDOW),
    (WINDOW, COARSE_FULL, FULL, LOCAL),
    (STATE, FULL, STATE),
    (WINDOW,),
    (STATE, STATE),
    (COARSE_FULL, FULL),
    (LOCAL, FULL),
]


def geometry_of(groups: tuple[CacheGroup, ...]) -> Geometry:
    return Geometry(block_tokens=8, blocks_per_chunk=2, groups=groups)


@pytest.mark.parametrize(
    ("group", "pages"),
    [(WINDOW, [0, 2, 3, 3]), (LOCAL, [0, 1, 0, 1]), (STATE, [0, 1, 1, 1])],
)
def test_a_resume_needs_the_pages_that_vllm_looks_up(group: CacheGroup, pages: list[int]) -> None:
    assert [group.pages_at(boundary) for boundary in (0, 8, 16, 24)] == pages


@pytest.mark.parametrize("groups", MODELS)
@given(data=st.data())
def test_a_window_is_found_again_from_the_catalog_s_rows_with_its_boundaries(
    groups: tuple[CacheGroup, ...], data: st.DataObject
) -> None:
    geometry, ids = geometry_of(groups), array("i", range(80))
    ends = data.draw(st.sets(st.integers(1, 10), min_size=1, max_size=3))
    if not geometry.full_groups:
        ends = {max(ends)}
    specs = window_chunks(PASSPORT, geometry, ids, tuple(ends))
    assert specs_of(geometry, [spec.key for spec in specs], [spec.blocks * 8 for spec in specs]) == specs
    assert ends <= set(boundaries_of(geometry, specs))
    assert sum(spec.blocks for spec in specs) == max(ends) == specs[-1].end_block
    assert len({spec.key for spec in specs}) == len(specs)


def test_a_chunk_is_the_same_wherever_else_its_window_is_cut() -> None:
    geometry, ids = geometry_of((FULL, WINDOW)), array("i", range(80))
    one = {spec.key for spec in window_chunks(PASSPORT, geometry, ids, (10,))}
    cut = {spec.key for spec in window_chunks(PASSPORT, geometry, ids, (5, 10))}
    # Four of five chunks, and the tail at the end. The chunk [4, 6) is cut in two, and there is a tail at 5.
    assert len(one) == 6 and len(cut) == 8 and len(one & cut) == 5


def test_a_tail_of_other_tokens_or_of_another_group_has_another_key() -> None:
    geometry = geometry_of((FULL, STATE, STATE))
    specs = window_chunks(PASSPORT, geometry, array("i", range(16)))
    others = window_chunks(PASSPORT, geometry, array("i", [*range(15), 99]))
    assert not {spec.key for spec in specs} & {spec.key for spec in others}
    assert [(spec.group, spec.blocks, spec.page_count, spec.usable_without) for spec in specs] == [
        (0, 2, 4, 0),
        (1, 0, 1, 1),
        (2, 0, 1, 1),
    ]


def test_a_chunk_without_its_tails_is_no_boundary() -> None:
    geometry = geometry_of((FULL, STATE))
    specs = window_chunks(PASSPORT, geometry, array("i", range(48)), (2, 6))
    assert boundaries_of(geometry, specs) == (2, 6)
    assert boundaries_of(geometry, specs[:-1]) == (2,)


def test_a_list_that_this_model_can_t_have_is_not_read() -> None:
    geometry = geometry_of((FULL, STATE))
    key = window_chunks(PASSPORT, geometry, array("i", range(16)))[0].key
    with pytest.raises(IndexError):
        specs_of(geometry, [key] * 3, [16, 0, 0])


def test_the_chunks_without_tails_are_those_that_requests_are_looked_up_by() -> None:
    geometry, ids = geometry_of((WINDOW, FULL)), array("i", range(40))
    window = window_chunks(PASSPORT, geometry, ids)
    assert chunk_specs(PASSPORT, geometry, ids) == tuple(spec for spec in window if spec.blocks)


def test_a_freeze_says_why_the_last_tokens_are_computed_again() -> None:
    geometry = geometry_of((FULL, STATE))
    assert why_not_all(geometry, 20, 16) == "this model can be resumed every 8 tokens"
    assert why_not_all(geometry, 16, 16) is None and why_not_all(Geometry(8, 2), 20, 16) is None


TWO = HeadShape(heads=2, layers=3, block_tokens=16, cell_bytes=8, tokens_first=False)
SIX = HeadShape(heads=6, layers=3, block_tokens=16, cell_bytes=8, tokens_first=False)


@pytest.mark.parametrize(
    ("shape", "ranks", "heads"),
    [
        (TWO, 1, [[0, 1]]),
        (TWO, 2, [[0], [1]]),
        (TWO, 4, [[0], [0], [1], [1]]),
        (SIX, 2, [[0, 1, 2], [3, 4, 5]]),
        (SIX, 3, [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_ranks_keep_heads_in_order_or_copies_of_one(shape: HeadShape, ranks: int, heads: list[list[int]]) -> None:
    assert shape.can_be_on(ranks)
    assert [list(shape.heads_on(rank, ranks)) for rank in range(ranks)] == heads
    assert shape.payload_bytes(5, ranks) == 5 * 3 * 16 * 8 * len(heads[0])


@pytest.mark.parametrize(("shape", "ranks"), [(TWO, 3), (SIX, 4), (TWO, 0)])
def test_ranks_that_heads_do_not_divide_over_are_found(shape: HeadShape, ranks: int) -> None:
    assert not shape.can_be_on(ranks)

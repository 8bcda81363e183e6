"""pinned_blocks.py with vLLM's own block pool."""

from typing import Any

import pytest

from cwm_connector.step.pinned_blocks import FREED_AT_ONCE, STALL_S, PinnedBlocks, PinnedSave
from tests.support.vllm_parts import compute, new_pool, request


class Saves:
    """A pool with three chunks of two blocks that nobody uses, and the saves that pin them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pool = new_pool(32)
        self.blocks = compute(self.pool, request(range(96)))
        self.pool.free_blocks(reversed(self.blocks))
        self.pinned = PinnedBlocks(lambda: self.now)

    def pin(self) -> PinnedSave:
        return self.pinned.pin(self.pool, [self.blocks[at : at + 2] for at in (0, 2, 4)])

    def held(self) -> list[int]:
        return [at for at, block in enumerate(self.blocks) if block.ref_cnt]


def test_the_end_of_a_sequence_is_given_back_first_and_each_block_once() -> None:
    saves = Saves()
    save = saves.pin()
    for captured, held in ((0, 6), (1, 4), (1, 4), (2, 2), (3, 0), (3, 0)):
        save.release(captured)
        assert saves.held() == list(range(held))
    save.release_all()
    assert saves.held() == []


def test_a_failed_save_gives_back_what_is_left() -> None:
    saves = Saves()
    save = saves.pin()
    save.release(2)
    save.release_all()
    assert saves.held() == []


def test_vllm_is_told_to_wait_while_a_save_gives_blocks_back() -> None:
    saves = Saves()
    assert not saves.pinned.frees_some_soon()
    save = saves.pin()
    assert saves.pinned.frees_some_soon()
    saves.now = STALL_S
    assert not saves.pinned.frees_some_soon(), "a save that is stuck must not keep vLLM from preempting"
    save.release(1)
    assert saves.pinned.frees_some_soon()
    save.release(3)
    assert not saves.pinned.frees_some_soon()


@pytest.mark.parametrize("users", [1, 2])
def test_vllm_does_not_wait_for_blocks_that_a_request_holds_as_well(users: int) -> None:
    saves = Saves()
    for _ in range(users):
        saves.pool.touch(saves.blocks)
    save = saves.pin()
    assert not saves.pinned.frees_some_soon()
    for _ in range(users):
        saves.pool.free_blocks(saves.blocks)
    assert saves.pinned.frees_some_soon()
    save.release_all()
    untouched: list[Any] = saves.held()
    assert untouched == []


def test_many_blocks_are_given_back_over_several_steps_the_end_of_the_sequence_first() -> None:
    tokens = 2 * FREED_AT_ONCE + 100
    pool = new_pool(tokens + 8)
    blocks = compute(pool, request(range(16 * tokens)))
    pool.free_blocks(reversed(blocks))
    pinned = PinnedBlocks()
    save = pinned.pin(pool, [[block] for block in blocks])
    save.release_all()
    held = [sum(block.ref_cnt for block in blocks)]
    while pinned.is_freeing:
        assert pinned.frees_some_soon()
        pinned.free_some()
        held.append(sum(block.ref_cnt for block in blocks))
    assert held == [FREED_AT_ONCE + 100, 100, 0]
    others = pool.get_num_free_blocks() - len(blocks)
    assert pool.get_new_blocks(others + 2)[others:] == [blocks[-1], blocks[-2]]

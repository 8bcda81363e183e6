"""The CPU tier: chunks that nobody has asked for make room first, and hot ones make none for them."""

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.tiers.cpu import CpuTier
from cwm_connector.tiers.policies.cold_first import HOT_S
from tests.cwm_connector.tiers.test_cpu import PAGE, chunk, present, put, tier

__all__ = ["tier"]


def put_unasked(tier: CpuTier, number: int) -> None:
    tier.publish(chunk(number), tier.reserve(PAGE, keep_hot=True), asked_for=False)
    tier.unpin(chunk(number))


def test_a_chunk_that_nobody_asked_for_goes_before_older_ones_until_it_is_used(tier: CpuTier) -> None:
    put(tier, 1)
    put_unasked(tier, 2)
    put_unasked(tier, 3)
    assert tier.pin(chunk(2)) is not None
    tier.unpin(chunk(2))
    put(tier, 4)
    put(tier, 5)
    assert present(tier, 1, 2, 3, 4, 5) == [1, 2, 4, 5]
    put(tier, 6)
    assert present(tier, 1, 2, 4, 5, 6) == [2, 4, 5, 6]


def test_memory_that_keeps_hot_chunks_is_free_or_cold_and_not_pinned(tier: CpuTier) -> None:
    for number in (1, 2, 3):
        put(tier, number)
    put_unasked(tier, 4)
    put_unasked(tier, 5)
    assert present(tier, 1, 2, 3, 4, 5) == [1, 2, 3, 5]
    assert tier.pin(chunk(5), counts=False) is not None
    with pytest.raises(CWMError, match="CWM-7001"):
        tier.reserve(PAGE, keep_hot=True)
    assert present(tier, 1, 2, 3, 5) == [1, 2, 3, 5]
    tier.unpin(chunk(5))
    put_unasked(tier, 6)
    assert present(tier, 1, 2, 3, 5, 6) == [1, 2, 3, 6]


def test_pieces_of_memory_that_are_too_small_cost_no_hot_chunk(tier: CpuTier) -> None:
    for number in (1, 2, 3, 4):
        put(tier, number)
    tier.drop(chunk(1))
    tier.drop(chunk(3))
    with pytest.raises(CWMError, match="CWM-7001"):
        tier.reserve(2 * PAGE, keep_hot=True)
    assert present(tier, 2, 4) == [2, 4]
    tier.release(tier.reserve(2 * PAGE))


def test_a_chunk_that_was_not_used_for_long_makes_room_for_any(tier: CpuTier, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3, 4):
        put(tier, number)
    monkeypatch.setattr("cwm_connector.tiers.policies.cold_first.HOT_S", -HOT_S)
    put_unasked(tier, 5)
    assert present(tier, 1, 2, 3, 4, 5) == [2, 3, 4, 5]

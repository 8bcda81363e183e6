"""placement.py: where chunks lie, as those who move them tell."""

from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.step.chunk_locations import Placement
from cwm_connector.tiers.base import ChunkId

A, B, C = (ChunkKey(bytes([number]) * 32) for number in range(3))


def test_a_chunk_is_in_memory_once_every_rank_has_its_part_there() -> None:
    placement = Placement(world_size=2)
    placement.update([ChunkId(A, 0)], [])
    assert not placement.holds(TierName.CPU, A)
    placement.update([ChunkId(A, 1)], [])
    assert placement.holds(TierName.CPU, A) and placement.in_memory() == [A]
    placement.update([], [ChunkId(A, 0)])
    assert not placement.holds(TierName.CPU, A)


def test_the_fastest_tier_that_has_a_chunk_is_told_and_none_for_a_lost_one() -> None:
    placement = Placement(world_size=1)
    placement.record(TierName.REDIS, [A, B])
    placement.record(TierName.DISK, [B, C])
    placement.update([ChunkId(C, 0)], [])
    assert [placement.fastest(key) for key in (A, B, C)] == [TierName.REDIS, TierName.DISK, TierName.CPU]
    placement.record(TierName.REDIS, [], [A])
    assert placement.fastest(A) is None


def test_a_chunk_counts_in_every_tier_that_holds_it() -> None:
    placement = Placement(world_size=1)
    placement.record(TierName.DISK, [A, B])
    placement.record(TierName.REDIS, [B])
    placement.update([ChunkId(A, 0)], [])
    assert placement.tiers_of([A, B, C]) == {"cpu": 1, "disk": 2, "redis": 1}


def test_a_copy_that_was_never_recorded_is_not_reported_as_bad() -> None:
    placement = Placement(world_size=1)
    placement.record(TierName.REDIS, [A])
    placement.saw_bad(A, TierName.DISK)
    placement.saw_bad(A, TierName.REDIS)
    assert placement.take_bad() == [(A, TierName.REDIS)]
    assert placement.take_bad() == []


def test_a_chunk_that_came_and_went_between_reports_is_gone() -> None:
    placement = Placement(world_size=1)
    placement.update([ChunkId(A, 0)], [ChunkId(A, 0)])
    assert not placement.holds(TierName.CPU, A)

"""locations.py: where chunks lie, as those who move them tell."""

from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.tiers.base import ChunkId

A, B, C = (ChunkKey(bytes([number]) * 32) for number in range(3))


def test_a_chunk_is_in_memory_once_every_rank_has_its_part_there() -> None:
    locations = ChunkLocations(world_size=2)
    locations.update([ChunkId(A, 0)], [])
    assert not locations.holds(TierName.CPU, A)
    locations.update([ChunkId(A, 1)], [])
    assert locations.holds(TierName.CPU, A) and locations.in_memory() == [A]
    locations.update([], [ChunkId(A, 0)])
    assert not locations.holds(TierName.CPU, A)


def test_the_fastest_tier_that_has_a_chunk_is_told_and_none_for_a_lost_one() -> None:
    locations = ChunkLocations(world_size=1)
    locations.record(TierName.REDIS, [A, B])
    locations.record(TierName.DISK, [B, C])
    locations.update([ChunkId(C, 0)], [])
    assert [locations.fastest(key) for key in (A, B, C)] == [TierName.REDIS, TierName.DISK, TierName.CPU]
    locations.record(TierName.REDIS, [], [A])
    assert locations.fastest(A) is None


def test_a_chunk_counts_in_every_tier_that_holds_it() -> None:
    locations = ChunkLocations(world_size=1)
    locations.record(TierName.DISK, [A, B])
    locations.record(TierName.REDIS, [B])
    locations.update([ChunkId(A, 0)], [])
    assert locations.tiers_of([A, B, C]) == {"cpu": 1, "disk": 2, "redis": 1}


def test_a_copy_that_was_never_recorded_is_not_reported_as_bad() -> None:
    locations = ChunkLocations(world_size=1)
    locations.record(TierName.REDIS, [A])
    locations.saw_bad(A, TierName.DISK)
    locations.saw_bad(A, TierName.REDIS)
    assert locations.take_bad() == [(A, TierName.REDIS)]
    assert locations.take_bad() == []


def test_a_chunk_that_came_and_went_between_reports_is_gone() -> None:
    locations = ChunkLocations(world_size=1)
    locations.update([ChunkId(A, 0)], [ChunkId(A, 0)])
    assert not locations.holds(TierName.CPU, A)

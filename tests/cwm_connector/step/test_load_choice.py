"""load_choice.py: with `auto` a load takes no longer than computing would."""

from array import array

import pytest

from cwm_connector.core.identity import Geometry, Passport, chunk_specs
from cwm_connector.core.types import TierName
from cwm_connector.metrics import Metrics
from cwm_connector.settings import LoadPolicy
from cwm_connector.step.chunk_locations import ChunkLocations
from cwm_connector.step.load_choice import LoadChoice
from cwm_connector.step.prefill_speed import FIRST_RANGE, PrefillSpeed
from cwm_connector.step.read_speed import ReadSpeed
from cwm_connector.tiers.base import ChunkId

BLOCK_TOKENS, CHUNK_BLOCKS, BLOCKS = 16, 2, 200
GEOMETRY = Geometry.of(BLOCK_TOKENS, CHUNK_BLOCKS * BLOCK_TOKENS)
TOKENS = BLOCKS * BLOCK_TOKENS
CHUNKS = chunk_specs(Passport({"weights": "w"}), GEOMETRY, array("i", range(TOKENS)))


class Engine:
    """An engine that computes 1,000 tokens a second, with a window whose chunks are on disk."""

    def __init__(self, policy: LoadPolicy = LoadPolicy.AUTO) -> None:
        self.now = 0.0
        self.prefill = PrefillSpeed(lambda: self.now)
        self.read = ReadSpeed(Metrics(), lambda: self.now)
        self.locations = ChunkLocations(world_size=1)
        self.locations.record(TierName.DISK, [chunk.key for chunk in CHUNKS])
        self.choice = LoadChoice(policy, GEOMETRY, self.locations, self.prefill, self.read)

    def compute(self, seconds: float = 1.0, position: int = 0) -> "Engine":
        self.prefill.step_planned(1000, position)
        self.now += seconds
        self.prefill.step_done()
        return self

    def in_memory(self, chunks: int, first: int = 0) -> None:
        self.locations.update([ChunkId(chunk.key, 0) for chunk in CHUNKS[first : first + chunks]], [])

    def disk(self, tokens_per_second: int) -> "Engine":
        self.read.measured({TierName.DISK: tokens_per_second}, 1.0)
        return self

    def end(self, from_block: int = 0) -> int:
        return self.choice.end_of_load(CHUNKS, from_block, BLOCKS)


def test_always_loads_from_the_slowest_disk() -> None:
    assert Engine(LoadPolicy.ALWAYS).compute().disk(10).end() == BLOCKS


def test_auto_loads_what_a_fast_disk_has_and_computes_what_a_slow_one_has() -> None:
    assert Engine().compute().disk(1100).end() == BLOCKS
    assert Engine().compute().disk(900).end() == 0
    assert Engine().compute().disk(900).end(from_block=7) == 7


def test_auto_loads_while_a_speed_is_unknown() -> None:
    assert Engine().disk(10).end() == BLOCKS
    assert Engine().compute().end() == BLOCKS


def test_auto_loads_the_beginning_that_is_in_memory() -> None:
    engine = Engine().compute().disk(900)
    engine.in_memory(3)
    assert engine.end() == 3 * CHUNK_BLOCKS
    assert engine.end(from_block=3) == 3 * CHUNK_BLOCKS


def test_auto_reads_a_little_from_a_slow_disk_to_reach_much_in_memory() -> None:
    engine = Engine().compute().disk(500)
    engine.in_memory(len(CHUNKS) - 1, first=1)
    assert engine.end() == BLOCKS


def test_auto_computes_the_cheap_beginning_only_if_nothing_follows_that_is_dear() -> None:
    engine = Engine().compute().disk(900)
    engine.compute(seconds=2.0, position=FIRST_RANGE)  # loading is slower before this position, and faster behind it
    assert engine.end() == BLOCKS
    beginning = FIRST_RANGE // BLOCK_TOKENS
    assert engine.choice.end_of_load(CHUNKS, 0, beginning) == 0
    assert engine.choice.end_of_load(CHUNKS, beginning, BLOCKS) == BLOCKS


def test_the_costs_count_the_position() -> None:
    engine = Engine().compute().compute(seconds=2.0, position=FIRST_RANGE)
    beginning = FIRST_RANGE // BLOCK_TOKENS
    assert engine.choice.costs(CHUNKS, beginning, beginning + 10).computing_s == pytest.approx(0.32)


def test_the_costs_say_which_is_faster_and_nothing_without_a_measurement() -> None:
    assert Engine().compute().choice.costs(CHUNKS, 0, BLOCKS).computing_is_faster is None
    assert Engine().disk(900).choice.costs(CHUNKS, 0, BLOCKS).computing_is_faster is None
    slow = Engine().compute().disk(900).choice.costs(CHUNKS, 0, BLOCKS)
    assert slow.computing_is_faster is True and slow.loading_s == pytest.approx(TOKENS / 900)
    assert Engine().compute().disk(1100).choice.costs(CHUNKS, 0, BLOCKS).computing_is_faster is False
    rest = Engine().compute().disk(900).choice.costs(CHUNKS, BLOCKS - 101, BLOCKS - 1)
    assert rest.loading_s == pytest.approx(1600 / 900) and rest.computing_s == pytest.approx(1.6)

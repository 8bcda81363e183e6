"""What every durable tier promises (`DurableTier`), whatever it is made of."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import NO_CLAIM
from cwm_connector.tiers.base import DurableTier
from cwm_connector.tiers.chunk import check
from cwm_connector.tiers.disk.tier import DiskTier
from cwm_connector.tiers.redis.tier import RedisTier
from tests.cwm_connector.tiers import toy
from tests.cwm_connector.tiers.chunks import (
    MIB,
    UNKNOWN,
    aligned_buffer,
    assert_reads_back,
    failure,
    put,
    sealed_chunk,
)
from tests.support.redis_server import redis_server

Open = Callable[[], DurableTier]


@pytest.fixture(params=["disk", "redis", "toy"])
def another(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens one more tier over the same bytes, as another process would."""
    with ExitStack() as stack:
        if request.param == "redis":
            server = stack.enter_context(redis_server(append_fsync="always"))
        if request.param == "toy":
            toy.register(monkeypatch)

        def open_another() -> DurableTier:
            tier: DurableTier
            match request.param:
                case "redis":
                    tier = RedisTier(server.url, "cwm:contract")
                case "toy":
                    tier = toy.ToyTier(tmp_path)
                case _:
                    tier = DiskTier(tmp_path)
            stack.callback(tier.close)
            return tier

        yield open_another


@pytest.fixture
def tier(another: Open) -> DurableTier:
    return another()


def test_chunks_come_back_bit_for_bit_also_later(tier: DurableTier, another: Open) -> None:
    sizes = [(1, 0), (MIB, 1), (3 * MIB // 2, 2**32 - 1)]
    chunks = [sealed_chunk(seed, size, rank) for seed, (size, rank) in enumerate(sizes)]
    put(tier, *chunks)
    tier.sync()
    tier.require_lasting()
    assert_reads_back(tier, *chunks)
    later = another()
    assert later.sweep_leftovers() == 0
    assert_reads_back(later, *chunks)
    assert dict(later.inventory()) == {chunk.id: chunk.buffer.nbytes for chunk in chunks}
    assert [later.size_of(chunk.id) for chunk in chunks] == [chunk.buffer.nbytes for chunk in chunks]


def test_many_chunks_at_once_each_get_their_own_bytes(tier: DurableTier) -> None:
    chunks = [sealed_chunk(seed, 100_000 + seed) for seed in range(64)]
    put(tier, *chunks)
    assert_reads_back(tier, *chunks)


def test_writing_again_replaces_the_bytes(tier: DurableTier) -> None:
    old, new = sealed_chunk(1, 5000), sealed_chunk(2, 20_000)
    put(tier, old)
    tier.write(old.id, new.buffer).result(timeout=30)
    target = aligned_buffer(new.buffer.nbytes)
    tier.read(old.id, target).result(timeout=30)
    assert target == new.buffer
    assert dict(tier.inventory()) == {old.id: new.buffer.nbytes}


def test_deleting_says_whether_it_was_there_and_leaves_nothing(tier: DurableTier) -> None:
    chunk, kept = sealed_chunk(1, 5000), sealed_chunk(2, 5000)
    put(tier, chunk, kept)
    assert tier.claims_of(chunk.id) == {NO_CLAIM}
    assert (tier.delete(chunk.id), tier.delete(chunk.id)) == (True, False)
    assert tier.size_of(chunk.id) is None
    assert tier.claims_of(chunk.id) == frozenset()
    assert [found for found, _ in tier.inventory()] == [kept.id]


def test_a_chunk_that_is_not_there_is_said_to_be_missing(tier: DurableTier) -> None:
    assert failure(tier.read(UNKNOWN, aligned_buffer(8192))).code is Code.CHUNK_MISSING
    assert tier.size_of(UNKNOWN) is None


@pytest.mark.parametrize("change", [-4096, 4096])
def test_another_length_is_corrupt_and_leaves_the_buffer_alone(tier: DurableTier, change: int) -> None:
    chunk = sealed_chunk(1, 20_000)
    put(tier, chunk)
    target = aligned_buffer(chunk.buffer.nbytes + change)
    problem = failure(tier.read(chunk.id, target))
    assert (problem.code, problem.context["fault"]) == (Code.CORRUPT, "length")
    assert not any(target)


def test_what_is_changed_is_served_and_the_check_finds_it(tier: DurableTier) -> None:
    chunk = sealed_chunk(1, 20_000)
    changed = memoryview(bytearray(chunk.buffer))
    changed[10_000] ^= 4
    source, target = aligned_buffer(changed.nbytes), aligned_buffer(changed.nbytes)
    source[:] = changed
    tier.write(chunk.id, source).result(timeout=30)
    tier.read(chunk.id, target).result(timeout=30)
    with pytest.raises(CWMError, match="checksum"):
        check(target, chunk.header)


def test_it_says_how_it_is(tier: DurableTier) -> None:
    assert tier.condition()
    assert not tier.shared

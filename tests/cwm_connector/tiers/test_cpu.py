"""The CPU tier: what is pinned stays, what is not gives way in order, and all memory comes back."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.base import ChunkId, TierUsage
from cwm_connector.tiers.cpu import CpuTier, HostBuffer

PAGE = 4096


def chunk(number: int) -> ChunkId:
    return ChunkId(ChunkKey(number.to_bytes(32, "big")), 0)


@pytest.fixture
def tier() -> Iterator[CpuTier]:
    """Four pages."""
    tier = CpuTier(4 * PAGE)
    yield tier
    tier.close()


def put(tier: CpuTier, number: int, pages: int = 1) -> HostBuffer:
    """Published and not pinned."""
    buffer = tier.publish(chunk(number), tier.reserve(pages * PAGE))
    tier.unpin(chunk(number))
    return buffer


def present(tier: CpuTier, *numbers: int) -> list[int]:
    return [number for number in numbers if tier.contains(chunk(number))]


def code_of_failed_reserve(tier: CpuTier, n_bytes: int) -> Code:
    with pytest.raises(CWMError) as raised:
        tier.reserve(n_bytes)
    return raised.value.code


# --- buffers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [1, 4095, 4096, 4097, 10_000])
def test_a_buffer_is_exactly_as_long_as_asked_aligned_and_one_memory(tier: CpuTier, n_bytes: int) -> None:
    tier.release(tier.reserve(100))
    buffer = tier.reserve(n_bytes)
    assert (buffer.nbytes, buffer.view.nbytes, buffer.tensor.shape) == (n_bytes, n_bytes, torch.Size([n_bytes]))
    assert (buffer.tensor.dtype, buffer.view.format, buffer.view.readonly) == (torch.uint8, "B", False)
    assert buffer.tensor.data_ptr() % PAGE == 0
    buffer.view[n_bytes - 1] = 7
    assert buffer.tensor[-1] == 7
    tier.release(buffer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_memory_is_page_locked_where_there_is_a_gpu(tier: CpuTier) -> None:
    buffer = tier.reserve(PAGE)
    assert buffer.tensor.is_pinned()
    tier.release(buffer)


def test_a_buffer_is_given_back_once(tier: CpuTier) -> None:
    buffer = tier.reserve(PAGE)
    tier.release(buffer)
    with pytest.raises(ValueError, match="reserved"):
        tier.release(buffer)
    published = tier.publish(chunk(1), tier.reserve(PAGE))
    with pytest.raises(ValueError, match="reserved"):
        tier.release(published)
    tier.unpin(chunk(1))


def test_nothing_can_be_reserved_as_no_bytes(tier: CpuTier) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        tier.reserve(0)


# --- eviction ---------------------------------------------------------------------------------------------------------


def test_the_least_recently_pinned_goes_first(tier: CpuTier) -> None:
    for number in (1, 2, 3, 4):
        put(tier, number)
    assert tier.pin(chunk(1)) is not None
    tier.unpin(chunk(1))
    assert tier.contains(chunk(2))  # looking is no use
    put(tier, 5)
    put(tier, 6)
    assert present(tier, 1, 2, 3, 4, 5, 6) == [1, 4, 5, 6]
    assert tier.take_evicted() == [chunk(2), chunk(3)]
    assert tier.take_evicted() == []


def test_more_than_the_tier_evicts_nothing(tier: CpuTier) -> None:
    put(tier, 1)
    assert code_of_failed_reserve(tier, 4 * PAGE + 1) is Code.MEMORY
    assert present(tier, 1) == [1]


def test_where_eviction_would_not_do_nothing_is_evicted(tier: CpuTier) -> None:
    put(tier, 1)
    tier.publish(chunk(2), tier.reserve(2 * PAGE))
    assert code_of_failed_reserve(tier, 3 * PAGE) is Code.MEMORY
    assert present(tier, 1, 2) == [1, 2]
    tier.unpin(chunk(2))


def test_a_pinned_chunk_and_a_reserved_buffer_are_never_evicted(tier: CpuTier) -> None:
    tier.publish(chunk(1), tier.reserve(2 * PAGE))
    reserved = tier.reserve(2 * PAGE)
    assert code_of_failed_reserve(tier, 1) is Code.MEMORY
    tier.release(reserved)
    tier.unpin(chunk(1))
    tier.release(tier.reserve(4 * PAGE))
    assert tier.take_evicted() == [chunk(1)]


def test_chunks_are_pinned_all_together_or_not_at_all(tier: CpuTier) -> None:
    put(tier, 1)
    put(tier, 2)
    assert not tier.pin_all([chunk(1), chunk(3)])
    assert tier.pin_all([chunk(1), chunk(2)])
    assert code_of_failed_reserve(tier, 3 * PAGE) is Code.MEMORY
    for number in (1, 2):
        tier.unpin(chunk(number))
        with pytest.raises(ValueError):
            tier.unpin(chunk(number))
    tier.release(tier.reserve(4 * PAGE))


def test_free_memory_in_pieces_is_joined_by_evicting_what_lies_between(tier: CpuTier) -> None:
    for number in (1, 2, 3, 4):
        put(tier, number)
    tier.drop(chunk(1))
    tier.drop(chunk(3))
    buffer = tier.reserve(2 * PAGE)
    assert present(tier, 2, 4) == [4]
    tier.release(buffer)


def test_what_is_back_is_not_called_evicted(tier: CpuTier) -> None:
    put(tier, 1)
    tier.release(tier.reserve(4 * PAGE))
    put(tier, 1)
    assert tier.take_evicted() == []


# --- publishing, pinning, dropping ------------------------------------------------------------------------------------


def test_what_is_published_twice_stays_where_it_was_first(tier: CpuTier) -> None:
    first = tier.publish(chunk(1), tier.reserve(PAGE))
    second = tier.publish(chunk(1), tier.reserve(PAGE))
    assert second is first
    assert tier.usage() == TierUsage(PAGE, 4 * PAGE, 1)
    tier.unpin(chunk(1))
    assert code_of_failed_reserve(tier, 4 * PAGE) is Code.MEMORY  # one pin is left
    tier.unpin(chunk(1))


def test_what_is_not_there_is_not_pinned(tier: CpuTier) -> None:
    assert tier.pin(chunk(1)) is None
    with pytest.raises(ValueError, match="not pinned"):
        tier.unpin(chunk(1))
    put(tier, 1)
    with pytest.raises(ValueError, match="not pinned"):
        tier.unpin(chunk(1))


def test_a_dropped_chunk_is_gone_at_once_and_its_memory_with_the_last_pin(tier: CpuTier) -> None:
    tier.publish(chunk(1), tier.reserve(PAGE))
    assert tier.drop(chunk(1))
    assert not tier.drop(chunk(1))
    assert (tier.contains(chunk(1)), tier.pin(chunk(1))) == (False, None)
    assert tier.usage() == TierUsage(PAGE, 4 * PAGE, 0)
    tier.unpin(chunk(1))
    assert tier.usage().used_bytes == 0
    assert tier.take_evicted() == []


def test_a_chunk_published_again_while_the_dropped_one_is_read_keeps_both_in_place(tier: CpuTier) -> None:
    old = tier.publish(chunk(1), tier.reserve(PAGE))
    tier.drop(chunk(1))
    new = tier.publish(chunk(1), tier.reserve(PAGE))
    assert new is not old
    tier.unpin(chunk(1))
    assert tier.usage() == TierUsage(2 * PAGE, 4 * PAGE, 1)
    tier.unpin(chunk(1))
    assert tier.usage() == TierUsage(PAGE, 4 * PAGE, 1)


# --- life -------------------------------------------------------------------------------------------------------------


def test_the_constructor_does_not_wait_for_the_memory() -> None:
    started = time.perf_counter()
    tier = CpuTier(256 << 20)
    constructed = time.perf_counter() - started
    tier.ready()
    assert constructed < (time.perf_counter() - started) / 2
    tier.close()


def test_more_memory_than_the_machine_has_is_refused_by_name() -> None:
    with pytest.raises(CWMError, match="CWM_CPU_CACHE_GB") as raised:
        CpuTier(1 << 50)
    assert raised.value.code is Code.MEMORY


def test_a_closed_tier_finds_nothing_and_reserves_nothing_but_leaves_pinned_memory_alone() -> None:
    tier = CpuTier(4 * PAGE)
    put(tier, 1)
    pinned = tier.publish(chunk(2), tier.reserve(PAGE))
    reserved = tier.reserve(PAGE)
    tier.close()
    tier.close()
    assert present(tier, 1, 2) == []
    assert code_of_failed_reserve(tier, PAGE) is Code.MEMORY
    assert tier.usage().used_bytes == 2 * PAGE
    pinned.view[0] = 1
    assert tier.publish(chunk(3), reserved) is reserved
    assert not tier.contains(chunk(3))
    tier.unpin(chunk(2))
    tier.unpin(chunk(3))
    assert tier.usage().used_bytes == 0


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = line.split(maxsplit=1)[0].split("-")
        if int(first, 16) <= address < int(last, 16):
            return True
    return False


def test_pinned_memory_stays_mapped_after_closing_until_the_last_pin_goes() -> None:
    tier = CpuTier(64 << 20)  # so much is unmapped as soon as it is freed
    middle = tier.publish(chunk(1), tier.reserve(64 << 20)).tensor.data_ptr() + (32 << 20)
    tier.close()
    assert is_mapped(middle)
    tier.unpin(chunk(1))
    assert not is_mapped(middle)


def test_a_process_that_never_closes_its_tier_ends_in_silence() -> None:
    program = """
from cwm_connector.tiers.cpu import CpuTier
tier = CpuTier(1 << 20)
reserved = tier.reserve(4096)
tier.publish((b"1", 0), tier.reserve(4096))
tier.publish((b"2", 0), tier.reserve(4096))
tier.unpin((b"2", 0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_threads_that_fight_over_too_little_memory_leave_it_whole() -> None:
    tier = CpuTier(16 * PAGE)
    problems: list[str] = []

    def work(own: int) -> None:
        for turn in range(300):
            number = (own * 7 + turn) % 12
            buffer = tier.pin(chunk(number))
            if buffer is None:
                buffer = tier.reserve(2 * PAGE)
                buffer.view[:] = bytes([number]) * buffer.nbytes
                buffer = tier.publish(chunk(number), buffer)
            if bytes(buffer.view) != bytes([number]) * buffer.nbytes:
                problems.append(f"chunk {number} was overwritten while it was pinned")
            tier.unpin(chunk(number))

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    tier.close()
    assert tier.usage().used_bytes == 0


class AnyOrder(RuleBasedStateMachine):
    """Whatever is called in whatever order: pinned bytes stay, the limit holds, everything comes back."""

    capacity = 8 * PAGE

    def __init__(self) -> None:
        super().__init__()
        self.tier = CpuTier(self.capacity)
        self.reserved: list[HostBuffer] = []
        self.held: list[tuple[ChunkId, HostBuffer, bytes]] = []
        self.marks = 0

    @rule(n_bytes=st.integers(1, 10 * PAGE))
    def reserve(self, n_bytes: int) -> None:
        before = self.tier.usage()
        try:
            buffer = self.tier.reserve(n_bytes)
        except CWMError as problem:
            assert problem.code is Code.MEMORY
            if n_bytes > self.capacity:
                assert self.tier.usage() == before
            return
        self.marks += 1
        buffer.view[:] = self.marks.to_bytes(8, "big")[-1:] * n_bytes
        self.reserved.append(buffer)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.reserved:
            self.tier.release(self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1))))

    @rule(data=st.data(), number=st.integers(0, 4))
    def publish(self, data: st.DataObject, number: int) -> None:
        if self.reserved:
            buffer = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
            in_force = self.tier.publish(chunk(number), buffer)
            self.held.append((chunk(number), in_force, bytes(in_force.view)))

    @rule(number=st.integers(0, 4))
    def pin(self, number: int) -> None:
        there = self.tier.contains(chunk(number))
        buffer = self.tier.pin(chunk(number))
        assert (buffer is not None) == there
        if buffer is not None:
            self.held.append((chunk(number), buffer, bytes(buffer.view)))

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.held:
            self.tier.unpin(self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))[0])

    @rule(number=st.integers(0, 4))
    def drop(self, number: int) -> None:
        there = self.tier.contains(chunk(number))
        assert self.tier.drop(chunk(number)) == there
        assert not self.tier.contains(chunk(number))

    @invariant()
    def pinned_bytes_are_untouched(self) -> None:
        for _, buffer, content in self.held:
            assert bytes(buffer.view) == content

    @invariant()
    def the_limit_holds(self) -> None:
        assert 0 <= self.tier.usage().used_bytes <= self.capacity

    def teardown(self) -> None:
        for buffer in self.reserved:
            self.tier.release(buffer)
        for held, _, _ in self.held:
            self.tier.unpin(held)
        everything = self.tier.reserve(self.capacity)
        assert self.tier.usage() == TierUsage(self.capacity, self.capacity, 0)
        self.tier.release(everything)
        self.tier.close()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

"""A sealed chunk is taken for what it is, and for nothing else."""

import subprocess
import sys
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.chunk import (
    ALIGNMENT,
    HEADER_BYTES,
    CheckInPieces,
    ChunkHeader,
    check,
    read_header,
    seal,
    sealed_bytes,
)
from tests.cwm_connector.tiers.chunks import LAYOUT, aligned_buffer, sealed_chunk

PAYLOAD = 3000
"""Leaves 1,096 bytes of padding behind it."""


def fault_of(buffer: memoryview, expected: ChunkHeader) -> str:
    with pytest.raises(CWMError) as raised:
        check(buffer, expected)
    assert raised.value.code is Code.CORRUPT
    return str(raised.value.context["fault"])


@settings(max_examples=50, deadline=None)
@given(payload=st.one_of(st.integers(0, 20_000), st.sampled_from([4096, 8192, 12288])))
def test_what_was_sealed_passes_and_is_aligned(payload: int) -> None:
    chunk = sealed_chunk(payload, payload)
    check(chunk.buffer, chunk.header)
    assert read_header(chunk.buffer) == chunk.header
    assert chunk.buffer.nbytes % ALIGNMENT == 0
    assert HEADER_BYTES + payload <= chunk.buffer.nbytes < HEADER_BYTES + payload + ALIGNMENT


def test_every_flipped_bit_is_caught() -> None:
    chunk = sealed_chunk(1, PAYLOAD)
    buffer = chunk.buffer
    passed = []
    for position in range(buffer.nbytes):
        for bit in range(8):
            buffer[position] ^= 1 << bit
            try:
                check(buffer, chunk.header)
                passed.append((position, bit))
            except CWMError as problem:
                assert problem.code is Code.CORRUPT
            buffer[position] ^= 1 << bit
    assert passed == []
    check(buffer, chunk.header)


def checked_in_pieces(buffer: memoryview, expected: ChunkHeader, pieces: int) -> None:
    whole = CheckInPieces(buffer, expected, pieces)
    whole.conclude([work() for work in whole.work()])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40_000), st.integers(1, 9), st.integers(0, 7), st.data())
def test_a_check_in_pieces_refuses_what_a_check_refuses(
    payload: int, pieces: int, bit: int, data: st.DataObject
) -> None:
    chunk = sealed_chunk(payload, payload)
    checked_in_pieces(chunk.buffer, chunk.header, pieces)
    at = data.draw(st.integers(0, chunk.buffer.nbytes - 1))
    chunk.buffer[at] ^= 1 << bit
    fault = fault_of(chunk.buffer, chunk.header)
    with pytest.raises(CWMError) as raised:
        checked_in_pieces(chunk.buffer, chunk.header, pieces)
    assert (raised.value.code, raised.value.context["fault"]) == (Code.CORRUPT, fault)


def test_a_check_in_pieces_gives_each_thread_as_many_bytes_as_the_others() -> None:
    chunk = sealed_chunk(3, 16 * ALIGNMENT - HEADER_BYTES)
    sizes = [piece.nbytes for piece in CheckInPieces(chunk.buffer, chunk.header, 4)._cut()]
    assert sizes == [4 * ALIGNMENT] * 4


def test_a_buffer_that_was_used_before_is_wiped_around_the_payload() -> None:
    used = aligned_buffer(sealed_bytes(PAYLOAD))
    used[:] = b"\xff" * used.nbytes
    header = ChunkHeader(ChunkKey(b"k" * 32), 0, 256, 16, PAYLOAD, LAYOUT)
    seal(used, header)
    check(used, header)
    assert bytes(used[HEADER_BYTES : HEADER_BYTES + PAYLOAD]) == b"\xff" * PAYLOAD
    assert not any(used[HEADER_BYTES + PAYLOAD :])
    assert not any(used[256:HEADER_BYTES])


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("key", {"key": ChunkKey(b"other" + bytes(27))}),
        ("rank", {"kv_rank": 1}),
        ("length", {"payload_bytes": PAYLOAD + 1}),
        ("layout", {"layout": bytes(32)}),
        ("tokens", {"tokens": 255}),
        ("blocks", {"blocks": 15}),
    ],
)
def test_what_differs_from_the_expected_chunk_is_named(fault: str, expected: dict[str, object]) -> None:
    chunk = sealed_chunk(2, PAYLOAD)
    assert fault_of(chunk.buffer, replace(chunk.header, **expected)) == fault  # type: ignore[arg-type]


def test_one_chunk_under_anothers_name_is_caught() -> None:
    assert fault_of(sealed_chunk(3, PAYLOAD).buffer, sealed_chunk(4, PAYLOAD).header) == "key"


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + PAYLOAD])
def test_a_truncated_chunk_is_caught(length: int) -> None:
    chunk = sealed_chunk(5, PAYLOAD)
    assert fault_of(chunk.buffer[:length], chunk.header) == "length"


def test_an_over_long_chunk_is_caught() -> None:
    chunk = sealed_chunk(6, PAYLOAD)
    longer = memoryview(bytes(chunk.buffer) + bytes(ALIGNMENT))
    assert fault_of(longer, chunk.header) == "length"


def test_what_is_no_chunk_and_what_a_later_version_wrote_is_named() -> None:
    chunk = sealed_chunk(7, PAYLOAD)
    assert fault_of(memoryview(bytes(chunk.buffer.nbytes)), chunk.header) == "magic"
    chunk.buffer[8] = 2
    assert fault_of(chunk.buffer, chunk.header) == "version"


def test_changed_payload_is_called_a_checksum_fault() -> None:
    chunk = sealed_chunk(8, PAYLOAD)
    chunk.buffer[HEADER_BYTES + 17] ^= 1
    assert fault_of(chunk.buffer, chunk.header) == "checksum"


def test_a_buffer_or_key_of_the_wrong_length_is_not_sealed() -> None:
    chunk = sealed_chunk(9, PAYLOAD)
    with pytest.raises(ValueError, match="can't seal"):
        seal(chunk.buffer[:ALIGNMENT], chunk.header)
    with pytest.raises(ValueError, match="32 bytes"):
        seal(chunk.buffer, replace(chunk.header, key=ChunkKey(b"short")))
    with pytest.raises(ValueError, match="32 bytes"):
        seal(chunk.buffer, replace(chunk.header, layout=b""))


def test_sealing_and_checking_copy_no_payload() -> None:
    chunk = sealed_chunk(10, 8 << 20)
    tracemalloc.start()
    try:
        seal(chunk.buffer, chunk.header)
        check(chunk.buffer, chunk.header)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_chunks_can_be_checked_without_torch_or_lmcache() -> None:
    program = "import sys, cwm_connector.tiers.chunk; print(sorted({'torch', 'lmcache', 'vllm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""What the tests of all tiers share: sealed chunks with reproducible content, and ways to write and read them."""

import mmap
import random
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import pytest

from cwm_connector.core.errors import CWMError
from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.base import ChunkId, DurableTier
from cwm_connector.tiers.chunk import HEADER_BYTES, ChunkHeader, check, seal, sealed_bytes

LAYOUT: Final = bytes(range(32))
MIB: Final = 1 << 20
UNKNOWN: Final = ChunkId(ChunkKey(bytes(32)), 0)


def aligned_buffer(n_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, n_bytes))


@dataclass(frozen=True)
class SealedChunk:
    header: ChunkHeader
    buffer: memoryview

    @property
    def id(self) -> ChunkId:
        return ChunkId(self.header.key, self.header.kv_rank)


def sealed_chunk(seed: int, payload_bytes: int, kv_rank: int = 0) -> SealedChunk:
    """The same seed gives the same key and bytes in every process."""
    content = random.Random(seed)
    header = ChunkHeader(ChunkKey(content.randbytes(32)), kv_rank, 256, 16, payload_bytes, LAYOUT)
    buffer = aligned_buffer(sealed_bytes(payload_bytes))
    buffer[HEADER_BYTES : HEADER_BYTES + payload_bytes] = content.randbytes(payload_bytes)
    seal(buffer, header)
    return SealedChunk(header, buffer)


def failure(future: "Future[None]") -> CWMError:
    with pytest.raises(CWMError) as raised:
        future.result(timeout=30)
    return raised.value


def put(tier: DurableTier, *chunks: SealedChunk) -> None:
    for future in [tier.write(chunk.id, chunk.buffer) for chunk in chunks]:
        future.result(timeout=30)


def assert_reads_back(tier: DurableTier, *chunks: SealedChunk) -> None:
    targets = [aligned_buffer(chunk.buffer.nbytes) for chunk in chunks]
    reads = [tier.read(chunk.id, target) for chunk, target in zip(chunks, targets, strict=True)]
    for chunk, target, read in zip(chunks, targets, reads, strict=True):
        read.result(timeout=30)
        check(target, chunk.header)
        assert target == chunk.buffer

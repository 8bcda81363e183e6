"""What the tier tests share: page-aligned buffers and sealed chunks with reproducible content."""

import mmap
import random
from dataclasses import dataclass

from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import HEADER_BYTES, ChunkHeader, seal, sealed_bytes

LAYOUT = bytes(range(32))


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

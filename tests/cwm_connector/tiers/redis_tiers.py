"""What the tests of the Redis tier share: tiers that are closed, and the ways to look at what they did."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.base import ChunkId, DurableTier
from cwm_connector.tiers.chunk import check
from cwm_connector.tiers.redis.tier import REST_S, RedisTier
from tests.cwm_connector.tiers.chunks import SealedChunk, aligned_buffer

MIB: Final = 1 << 20
NAMESPACE: Final = "cwm:store-1"
UNKNOWN: Final = ChunkId(ChunkKey(bytes(32)), 0)
SECRET: Final = "pässw@rd:/#?"


@contextmanager
def opened(url: str, namespace: str = NAMESPACE, **options: Any) -> Iterator[RedisTier]:
    tier = RedisTier(url, namespace, **options)
    try:
        yield tier
    finally:
        tier.close()


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


def value_key(chunk: SealedChunk, namespace: str = NAMESPACE) -> str:
    return f"{namespace}:{{{chunk.id.key.hex()}.{chunk.id.kv_rank}}}:chunk"


def wait_until_it_answers(tier: RedisTier) -> None:
    """After a hang: until nobody rests any more, readers included."""
    until = time.monotonic() + REST_S + 5
    while True:
        try:
            tier.size_of(UNKNOWN)
            tier.read(UNKNOWN, aligned_buffer(4096)).result()
        except CWMError as problem:
            if problem.code is Code.CHUNK_MISSING:
                return
            assert time.monotonic() < until

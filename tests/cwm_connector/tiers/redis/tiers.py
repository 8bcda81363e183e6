"""What the tests of the Redis tier share: tiers that are closed, and the ways to look at what they did."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.tiers.redis.tier import REST_S, RedisTier
from tests.cwm_connector.tiers.chunks import UNKNOWN, SealedChunk, aligned_buffer

NAMESPACE: Final = "cwm:store-1"
SECRET: Final = "pässw@rd:/#?"


@contextmanager
def opened(url: str, namespace: str = NAMESPACE, **options: Any) -> Iterator[RedisTier]:
    tier = RedisTier(url, namespace, **options)
    try:
        yield tier
    finally:
        tier.close()


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

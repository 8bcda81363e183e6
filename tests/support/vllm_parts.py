"""Real pieces of vLLM's scheduler (requests, block pool) for tests that need no engine."""

import hashlib
from typing import Any

from vllm import SamplingParams
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

BLOCK_TOKENS = 16


def _hash(value: Any) -> bytes:
    # A digest: the parent's hash is part of the value, and what it is would else double with every block.
    return hashlib.sha256(repr(value).encode()).digest()


init_none_hash(_hash)
HASHER = get_request_block_hasher(BLOCK_TOKENS, _hash)


def request(token_ids: Any, request_id: str = "r", **more: Any) -> Request:
    """A request as the scheduler holds it when it was just added."""
    return Request(
        request_id=request_id,
        prompt_token_ids=list(token_ids),
        sampling_params=SamplingParams(max_tokens=4),
        pooling_params=None,
        block_hasher=HASHER,
        **more,
    )


def compute(pool: BlockPool, one: Request) -> list[Any]:
    """What a prefill leaves: the request's full blocks, allocated, cached and held by it."""
    blocks = pool.get_new_blocks(len(one.block_hashes))
    pool.cache_full_blocks(one, blocks, 0, len(blocks), BLOCK_TOKENS, 0)
    one.num_computed_tokens = one.num_tokens
    return blocks


def new_pool(blocks: int = 32) -> BlockPool:
    return BlockPool(num_gpu_blocks=blocks, enable_caching=True, hash_block_size=BLOCK_TOKENS)

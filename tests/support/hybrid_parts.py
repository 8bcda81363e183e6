"""vLLM's own KV cache manager over several groups, and requests that pass through it, without a model."""

from typing import Any

import torch
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request

from tests.support.vllm_parts import BLOCK_TOKENS as BLOCK
from tests.support.vllm_parts import request

_HEADS: Any = {"num_kv_heads": 2, "head_size": 8, "dtype": torch.bfloat16}
"""Of every attention spec."""


def full(block: int = BLOCK) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=block, **_HEADS)


def sliding(window: int = 40, block: int = BLOCK) -> SlidingWindowSpec:
    return SlidingWindowSpec(block_size=block, sliding_window=window, **_HEADS)


def local(chunk: int = 64) -> ChunkedLocalAttentionSpec:
    return ChunkedLocalAttentionSpec(block_size=BLOCK, attention_chunk_size=chunk, **_HEADS)


def state(block: int = BLOCK, mode: str = "align") -> MambaSpec:
    return MambaSpec(block_size=block, shapes=((2, 8),), dtypes=(torch.float32,), mamba_cache_mode=mode)


def config(*specs: Any, blocks: int = 64) -> KVCacheConfig:
    """The groups of a model with one layer of each spec."""
    groups = [KVCacheGroupSpec([f"layer{index}"], spec) for index, spec in enumerate(specs)]
    return KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups, prefix_cache_retention_interval=0
    )


def manager(*specs: Any, blocks: int = 64) -> KVCacheManager:
    longest = max(spec.block_size for spec in specs)
    shortest = min(spec.block_size for spec in specs)
    return KVCacheManager(
        config(*specs, blocks=blocks), max_model_len=4096, scheduler_block_size=longest, hash_block_size=shortest
    )


def prefill(one: KVCacheManager, tokens: Any, step: int = BLOCK, **more: Any) -> Request:
    """A request that holds its blocks when its prompt is computed, in steps of so many tokens."""
    asked = request(tokens, **more)
    computed_blocks, computed = one.get_computed_blocks(asked)[:2]
    new, hits = computed_blocks, computed
    while computed < asked.num_tokens:
        count = min(step - computed % step, asked.num_tokens - computed)
        assert one.allocate_slots(asked, count, hits, new) is not None
        computed += count
        asked.num_computed_tokens = computed
        new, hits = None, 0
        one.new_step_starts()
    return asked

"""vLLM's own CPU attention, with sinks and a sliding window in a group whose work is planned for the whole context.

It is why gpt-oss needs VLLM_CPU_ATTN_SPLIT_KV=0 beside `--disable-hybrid-kv-cache-manager` (docs/models.md).
"""

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from cwm_mcp.serve import Build, installed_build

BLOCK, HEAD, WINDOW, TOKENS = 128, 64, 128, 910
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def decoded(tokens: int, window: int, sinks: torch.Tensor | None, *, split: bool) -> torch.Tensor:
    """The output of one decode step over random keys and values, of two heads."""
    generator = torch.Generator().manual_seed(tokens)
    isa = _get_attn_isa(torch.bfloat16, BLOCK, HEAD, "auto")
    cache = torch.zeros((9, 1, 2 * BLOCK, HEAD), dtype=torch.bfloat16)
    keys, values = cache.chunk(2, dim=2)
    new = torch.randn((2, tokens, 1, HEAD), generator=generator).to(torch.bfloat16)
    ops.cpu_attn_reshape_and_cache(new[0], new[1], keys, values, torch.arange(tokens) + BLOCK, isa)
    query = torch.randn((1, 2, HEAD), generator=generator).to(torch.bfloat16)
    starts, lengths = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([tokens], dtype=torch.int32)
    plan = ops.cpu_attn_get_scheduler_metadata(
        1, 2, 1, HEAD, lengths, torch.bfloat16, starts, causal=True, sliding_window_size=-1, isa=isa,
        enable_kv_split=split,
    )  # fmt: skip
    output, table = torch.empty_like(query), torch.arange(1, 9, dtype=torch.int32)[None]
    ops.cpu_attention_with_kv_cache(
        query, keys, values, output, starts, lengths, HEAD**-0.5, True, None, window - 1, table, 0, plan, sinks
    )
    return output


@pytest.mark.skipif(installed_build() is not Build.CPU or AVX512, reason="seen with AVX2 kernels on the CPU")
def test_only_without_split_sums_does_a_windowed_layer_with_sinks_give_the_same_again() -> None:
    sinks = torch.tensor([0.01, -0.02]).to(torch.bfloat16)
    repeats = {}
    for split in (True, False):
        first = decoded(TOKENS, WINDOW, sinks, split=split)
        again = []
        for shorter in range(1, 6):
            decoded(TOKENS - 16 * shorter, 0, None, split=split)
            again.append(torch.equal(decoded(TOKENS, WINDOW, sinks, split=split), first))
        repeats[split] = all(again)
    assert repeats == {True: False, False: True}

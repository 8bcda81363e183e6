"""compat/groups.py: which models are accepted, and how their groups are described."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    RSWASpec,
    UniformTypeKVCacheSpecs,
)

from cwm_connector import compat
from cwm_connector.core.errors import CWMError
from cwm_connector.core.groups import CacheGroup, GroupKind, HeadShape
from tests.support.hybrid_parts import config, full, local, sliding, state
from tests.support.vllm_parts import BLOCK_TOKENS as BLOCK

_HEADS: Any = {"block_size": BLOCK, "num_kv_heads": 2, "head_size": 8, "dtype": torch.bfloat16}


def engine_config(**more: Any) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            data_parallel_size=1, decode_context_parallel_size=1, prefill_context_parallel_size=1
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        kv_transfer_config=None,
        **{"speculative_config": None, **more},
    )


@pytest.mark.parametrize(
    ("specs", "kinds", "block"),
    [
        ((full(), sliding()), ("full", "window"), BLOCK),
        ((sliding(),), ("window",), BLOCK),
        ((full(), state(), state()), ("full", "state", "state"), BLOCK),
        ((local(), full()), ("local", "full"), BLOCK),
        ((sliding(80, 8 * BLOCK), full()), ("window", "full"), 8 * BLOCK),
    ],
)
def test_a_model_with_several_kinds_of_attention_is_described(
    specs: tuple[KVCacheSpec, ...], kinds: tuple[str, ...], block: int
) -> None:
    compat.check_supported(engine_config(), config(*specs))
    groups = compat.cache_groups(config(*specs))
    assert tuple(group.kind.value for group in groups) == kinds
    assert compat.block_tokens(config(*specs)) == block and compat.hash_tokens(config(*specs)) == BLOCK
    assert [group.page_tokens for group in groups] == [spec.block_size for spec in specs]


def test_full_attention_alone_keeps_its_whole_blocks() -> None:
    assert compat.cache_groups(config(full())) == ()


def test_layers_with_pages_of_different_sizes_are_one_group() -> None:
    uniform = UniformTypeKVCacheSpecs(block_size=BLOCK, kv_cache_specs={"a": full(), "b": full()})
    assert compat.cache_groups(config(uniform)) == (CacheGroup(GroupKind.FULL, BLOCK),)


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ((full(), CrossAttentionSpec(**_HEADS)), "CrossAttentionSpec"),
        ((RSWASpec(**_HEADS, rswa_window=64),), "RSWASpec"),
        ((full(), state(mode="none")), "--mamba-cache-mode align"),
        ((full(48), sliding(80, 32)), "don't divide each other"),
        ((state(16), state(32)), "no full attention"),
    ],
)
def test_what_was_never_shown_to_be_exact_is_refused_by_name(specs: tuple[KVCacheSpec, ...], why: str) -> None:
    with pytest.raises(CWMError, match=rf"CWM-3001.*{why}"):
        compat.check_supported(engine_config(), config(*specs))


def test_a_drafter_and_boundaries_within_a_block_are_refused() -> None:
    drafter = SimpleNamespace(use_eagle=lambda: True, method="eagle3")
    with pytest.raises(CWMError, match=r"CWM-3001.*drafter.*eagle3"):
        compat.check_supported(engine_config(speculative_config=drafter), config(full(), sliding()))
    fine = config(full(), state(64))
    fine.cache_hit_alignment_tokens = BLOCK
    with pytest.raises(CWMError, match=r"CWM-3001.*--prefix-match-unit"):
        compat.check_supported(engine_config(), fine)
    cold = engine_config()
    cold.cache_config.enable_prefix_caching = False
    with pytest.raises(CWMError, match="--enable-prefix-caching"):
        compat.check_supported(cold, config(full(), sliding()))


def test_a_group_in_host_memory_is_refused() -> None:
    hosted = config(full(), sliding())
    hosted.kv_cache_groups[0].host_resident = True
    with pytest.raises(CWMError, match="host memory"):
        compat.check_supported(engine_config(), hosted)


def test_another_window_gives_the_pages_another_meaning() -> None:
    assert compat.group_facts(config(full(), sliding(40))) != compat.group_facts(config(full(), sliding(41)))


def heads_config(ranks: int = 1, heads: int = 2, layers: int = 1) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks, pipeline_parallel_size=layers),
        model_config=SimpleNamespace(get_total_num_kv_heads=lambda: heads),
    )


def laid_out(layout: str, *specs: KVCacheSpec) -> Any:
    parts = config(*specs)
    parts.kv_cache_layout = layout
    return parts


@pytest.mark.parametrize(("layout", "tokens_first"), [("LBHNC", False), ("LBNHC", True)])
@pytest.mark.parametrize(("ranks", "total"), [(1, 2), (2, 4), (4, 2)])
def test_the_heads_of_standard_attention_are_described(layout: str, tokens_first: bool, ranks: int, total: int) -> None:
    local = max(1, total // ranks)
    spec = FullAttentionSpec(**{**_HEADS, "num_kv_heads": local})
    found = compat.head_shape(heads_config(ranks, total), laid_out(layout, spec))
    assert isinstance(found, HeadShape)
    assert (found.heads, found.block_tokens, found.cell_bytes) == (total, BLOCK, 2 * 8 * 2)
    assert found.tokens_first is tokens_first
    assert found.payload_bytes(1, ranks) == spec.page_size_bytes * found.layers


@pytest.mark.parametrize(
    ("parts", "engine", "why"),
    [
        (laid_out("LBHNC", full(), sliding()), heads_config(), "several kinds of attention"),
        (laid_out("LBHNC", state()), heads_config(), "MambaSpec"),
        (laid_out("LBHNC", MLAAttentionSpec(**{**_HEADS, "num_kv_heads": 1})), heads_config(), "MLAAttentionSpec"),
        (laid_out("LBHNC", FullAttentionSpec(**_HEADS)), heads_config(layers=2), "layers are divided"),
        (laid_out("BHLNC", FullAttentionSpec(**_HEADS)), heads_config(), "not laid out by heads"),
        (
            laid_out("LBHNC", FullAttentionSpec(**_HEADS, page_size_padded=4096)),
            heads_config(),
            "not laid out by heads",
        ),
    ],
)
def test_other_kv_says_why_it_can_not_be_divided_over_other_ranks(parts: Any, engine: Any, why: str) -> None:
    found = compat.head_shape(engine, parts)
    assert isinstance(found, str) and why in found


def test_the_numbers_in_the_pages_of_each_group_are_known_where_a_tolerance_makes_sense() -> None:
    pages, states = torch.zeros((8, BLOCK, 2, 16), dtype=torch.bfloat16), torch.zeros((8, 64), dtype=torch.int8)
    attention = ((torch.bfloat16, pages[0].nbytes),)
    told = config(full(), state())
    assert compat.page_numbers(told, [[pages, pages], [states]]) == (attention, ((torch.float32, 64),))
    assert compat.page_numbers(config(full()), [[pages.to(torch.uint8)]]) == (), "quantised"
    assert compat.page_numbers(told, [[pages], [states[:, :32]]]) == (), "no such states"
    assert compat.page_numbers(config(full()), [[pages, pages[:, :4]]]) == (), "layers of several sizes"

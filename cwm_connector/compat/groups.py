"""vLLM's KV cache groups: which of them CWM can freeze, what they keep, and how far all of them together are cached.

`check_groups`, `cache_groups` and `group_facts` are called at the start, by the engine thread and by each worker.
`cached_boundary` is for the engine thread only. Nothing here blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.groups import CacheGroup, GroupKind, HeadShape

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, KVCacheSpec


def check_groups(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
    """Raise `Code.STATE` for a model whose KV cache groups can't be frozen exactly."""
    if not vllm_config.cache_config.enable_prefix_caching:
        raise CWMError(Code.STATE, "a freeze needs vLLM's prefix cache; serve with --enable-prefix-caching")
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if _is_plain(kv_cache_config):
        _check_unit(getattr(kv_cache_config, "hash_block_size", None), specs[0].block_size)
        return
    for group in kv_cache_config.kv_cache_groups:
        _check_group(group)
    if all(_kind(spec) is not GroupKind.FULL for spec in specs) and len({spec.block_size for spec in specs}) > 1:
        _refuse("has no full attention and states of different lengths")
    longest = max(spec.block_size for spec in specs)
    if any(longest % spec.block_size for spec in specs):
        _refuse("has KV cache blocks of lengths that don't divide each other")
    _check_unit(getattr(kv_cache_config, "cache_hit_alignment_tokens", None), longest)
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.use_eagle():
        _refuse(f"is served with a drafter that shares its hidden states ({speculative.method})")


def cache_groups(kv_cache_config: "KVCacheConfig") -> tuple[CacheGroup, ...]:
    """Return the groups of a model that can be resumed at boundaries alone. Empty for full attention alone."""
    if _is_plain(kv_cache_config):
        return ()
    specs = [_first_spec(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups]
    return tuple(CacheGroup(_kind(spec), spec.block_size, _reach(spec)) for spec in specs)


_HEADS_IN_PAGE: Final = {"LBHNC": False, "LBNHC": True}
"""Layouts in which a page holds all heads of a layer, and whether it holds them token by token."""


def head_shape(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> HeadShape | str:
    """Return how the heads lie in a rank's pages, or why they can't be divided over another number of ranks."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    group = kv_cache_config.kv_cache_groups[0]
    spec = group.kv_cache_spec
    if len(kv_cache_config.kv_cache_groups) > 1:
        return "it has several kinds of attention or states"
    if type(spec) is not FullAttentionSpec:
        return f"its KV is not that of standard attention ({type(spec).__name__})"
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        return "its layers are divided over ranks too"
    heads = vllm_config.model_config.get_total_num_kv_heads()
    ranks = parallel.tensor_parallel_size
    cell = spec.state_content_size_bytes
    dense = spec.page_size_bytes == spec.num_kv_heads * spec.block_size * cell
    layout = str(kv_cache_config.kv_cache_layout)
    if not dense or layout not in _HEADS_IN_PAGE or spec.num_kv_heads != max(1, heads // ranks):
        return "its pages are not laid out by heads"
    return HeadShape(heads, len(group.layer_names), spec.block_size, cell, _HEADS_IN_PAGE[layout])


def hash_tokens(kv_cache_config: "KVCacheConfig") -> int:
    """Return the tokens that each of a request's block hashes covers."""
    sizes = [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]
    return getattr(kv_cache_config, "hash_block_size", None) or min(sizes)


def group_facts(kv_cache_config: "KVCacheConfig") -> str:
    """Return what gives the groups' pages their meaning, as text for a fingerprint."""
    return repr([group.kv_cache_spec for group in kv_cache_config.kv_cache_groups])


@dataclass(frozen=True, slots=True)
class CachedBoundary:
    """The last position at which vLLM could resume some tokens now, and the blocks that it would use."""

    tokens: int
    blocks: "tuple[Sequence[KVCacheBlock], ...]"
    """By group, from block 0 on. Null blocks stand where the resume needs none."""


def cached_boundary(coordinator: "KVCacheCoordinator", hashes: Sequence[bytes], limit: int) -> CachedBoundary:
    """Return the last boundary of at most `limit` tokens that vLLM's prefix cache has in every group."""
    blocks, tokens, _ = coordinator.find_longest_cache_hit(list(hashes), limit)
    return CachedBoundary(tokens, tuple(blocks))


# --- internal --------------------------------------------------------------------------------------------------------


def _is_plain(kv_cache_config: "KVCacheConfig") -> bool:
    """Return whether the model has full attention in all layers, so that it can be resumed after every block."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, RSWASpec, SinkFullAttentionSpec

    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    other = (RSWASpec, SinkFullAttentionSpec)
    return len(specs) == 1 and isinstance(specs[0], FullAttentionSpec) and not isinstance(specs[0], other)


def _first_spec(spec: "KVCacheSpec") -> "KVCacheSpec":
    """Return the spec of the first layer of a group whose layers' pages differ in size."""
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

    return spec.first_spec if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def _kind(spec: "KVCacheSpec") -> GroupKind:
    """Return what the layers of the spec keep. Raises: `Code.STATE` for a kind that was never tried."""
    from vllm.v1 import kv_cache_interface as vllm_specs

    kinds = {
        vllm_specs.FullAttentionSpec: GroupKind.FULL,
        vllm_specs.MLAAttentionSpec: GroupKind.FULL,
        vllm_specs.SlidingWindowSpec: GroupKind.WINDOW,
        vllm_specs.ChunkedLocalAttentionSpec: GroupKind.LOCAL,
        vllm_specs.MambaSpec: GroupKind.STATE,
    }
    kind = kinds.get(type(_first_spec(spec)))
    if kind is None:
        _refuse(f"keeps {type(_first_spec(spec)).__name__} in place of keys and values")
    return kind


def _reach(spec: "KVCacheSpec") -> int:
    return int(getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None) or 0)


def _check_group(group: "KVCacheGroupSpec") -> None:
    spec = group.kv_cache_spec
    kind = _kind(spec)
    if group.host_resident or not group.enable_kv_transfer:
        _refuse("keeps a part of its KV cache in host memory")
    if not spec.prefix_cacheable:
        _refuse("has a part of its KV that vLLM's prefix cache leaves out")
    if group.is_eagle_group:
        _refuse("is served with a drafter that has KV of its own")
    if kind is GroupKind.STATE and getattr(_first_spec(spec), "mamba_cache_mode", "") != "align":
        raise CWMError(
            Code.STATE,
            "this model's states are not kept at the ends of blocks; serve it with --enable-prefix-caching and "
            "--mamba-cache-mode align",
        )


def _check_unit(unit: int | None, block: int) -> None:
    if unit is not None and unit != block:
        raise CWMError(
            Code.STATE, "prefix-cache hashes finer than a block are not supported; unset --prefix-match-unit"
        )


def _refuse(fault: str) -> NoReturn:
    raise CWMError(
        Code.STATE,
        f"this model {fault}, which CWM can't freeze exactly yet; serve it without the connector (docs/models.md)",
    )

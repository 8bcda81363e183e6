"""What vLLM serves, and what the KV depends on: the model, its caches, the weights' files. Engine thread, at the start.

Nothing here blocks, except `weight_files`, which reads from the disk.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from cwm_connector.compat import groups
from cwm_connector.compat.kv_options import drafter_model, kv_options
from cwm_connector.core.errors import Code, CWMError

if TYPE_CHECKING:
    from vllm.config import LoadConfig, ModelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


def check_supported(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
    """Raise `Code.STATE` or `Code.ARGUMENT` for a model or a configuration whose KV can't be frozen exactly."""
    groups.check_groups(vllm_config, kv_cache_config)
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_size > 1:
        raise CWMError(Code.STATE, "data parallelism is not supported yet; start one engine for each rank")
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise CWMError(Code.STATE, "context parallelism is not supported yet; serve without it")
    transfer = vllm_config.kv_transfer_config
    if transfer is not None and transfer.kv_role != "kv_both":
        raise CWMError(
            Code.ARGUMENT,
            f"with kv_role {transfer.kv_role!r} vLLM reuses blocks while windows are loaded into them; set "
            '"kv_role":"kv_both" in --kv-transfer-config',
        )
    if transfer is not None and transfer.kv_load_failure_policy != "recompute":
        raise CWMError(
            Code.ARGUMENT,
            'a chunk that can\'t be read must be recomputed; add "kv_load_failure_policy":"recompute" to '
            "--kv-transfer-config",
        )


def block_tokens(kv_cache_config: "KVCacheConfig") -> int:
    """Return the tokens in each block, or between two boundaries of a model with several kinds of attention."""
    return math.lcm(*(group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups))


def block_bytes(kv_cache_config: "KVCacheConfig") -> int:
    """Return the bytes of one block in all layers together, on one rank."""
    group = kv_cache_config.kv_cache_groups[0]
    return group.kv_cache_spec.page_size_bytes * len(group.layer_names)


def layers_in_order(
    kv_cache_config: "KVCacheConfig", kv_caches: Mapping[str, torch.Tensor]
) -> list[list[torch.Tensor]]:
    """Return for each KV cache group each layer's cache, `[blocks, …]` with whole scheduler blocks.

    They are in the order of the model's layers. The order of the addresses would not do. It can differ in the next
    process, and a chunk is read by position. A layer that uses another layer's KV is left out.
    """
    from vllm.v1.kv_cache_interface import group_kernel_blocks

    found = []
    for group in kv_cache_config.kv_cache_groups:
        layers = {kv_caches[name].data_ptr(): kv_caches[name] for name in reversed(group.layer_names)}
        found.append([group_kernel_blocks(layer, kv_cache_config.num_blocks) for layer in reversed(layers.values())])
    return found


def page_numbers(
    kv_cache_config: "KVCacheConfig", groups: Sequence[Sequence[torch.Tensor]]
) -> tuple[tuple[tuple[torch.dtype, int], ...], ...]:
    """Return for each KV cache group the types of the numbers in a layer's page, each with its bytes, in their order.

    `groups`: the layers' caches. Empty if a page holds anything but numbers that can be compared with a tolerance.
    """
    from vllm.v1.kv_cache_interface import MambaSpec

    found: list[tuple[tuple[torch.dtype, int], ...]] = []
    for group, layers in zip(kv_cache_config.kv_cache_groups, groups, strict=True):
        spec, page = group.kv_cache_spec, layers[0][0].nbytes
        if isinstance(spec, MambaSpec):
            shapes = zip(spec.dtypes, spec.shapes, strict=True)
            found.append(tuple((dtype, math.prod(shape) * dtype.itemsize) for dtype, shape in shapes))
        else:
            found.append(((layers[0].dtype, page),))
        if sum(size for _, size in found[-1]) != page or any(layer[0].nbytes != page for layer in layers):
            return ()
    numbers = all(dtype.is_floating_point for parts in found for dtype, _ in parts)
    return tuple(found) if numbers else ()


_CONFIG_PROVENANCE: Final = ("_name_or_path", "_model_name_or_path", "transformers_version")
"""Keys that say where a config came from. They are left out, because a model that was moved or saved again is the same.
"""


def passport_fields(
    vllm_config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    *,
    weights: str,
    drafter_weights: str,
    layout: str,
    backend: str,
    isa: str,
) -> dict[str, str]:
    """Return the fields of the passport, except the version of the chunk format.

    `weights` and `drafter_weights` are digests and `layout` is a fingerprint of all ranks' pages. The workers report
    `backend` and `isa`. vLLM's minor version is one of the fields, because another version may pack the same shape
    differently and no other field would show it.
    """
    import hashlib
    import json

    import vllm

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    shape = {name: value for name, value in model.hf_config.to_dict().items() if name not in _CONFIG_PROVENANCE}
    config = json.dumps(shape, sort_keys=True, default=str)
    return {
        "weights": weights,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "dtype": str(model.dtype),
        "cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "quantization": str(model.quantization),
        "block_tokens": str(block_tokens(kv_cache_config)),
        "layout": f"{kv_cache_config.kv_cache_layout}:{layout}",
        "attention_backend": backend,
        "instruction_set": isa,
        "tensor_parallel": str(parallel.tensor_parallel_size),
        "pipeline_parallel": str(parallel.pipeline_parallel_size),
        **kv_options(vllm_config, kv_cache_config),
        "drafter_weights": drafter_weights,
        "vllm": ".".join(vllm.__version__.split("+")[0].split(".")[:2]),
    }


def instruction_set() -> str:
    """Return what decides the order of bytes in a page: the CPU's vector unit or the GPU's compute capability.

    Worker processes only, because the call opens a CUDA context on the device.
    """
    if torch.cuda.is_available():
        return "sm{}{}".format(*torch.cuda.get_device_capability())
    amx = "+amx" if torch.cpu._is_amx_tile_supported() else ""
    return torch.backends.cpu.get_cpu_capability() + amx


def attention_backend(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> str:
    """Return the names of the attention backends that the model's layers really use. Worker processes only."""
    layers = vllm_config.compilation_config.static_forward_context
    names = [name for group in kv_cache_config.kv_cache_groups for name in group.layer_names]
    return "+".join(sorted({layers[name].get_attn_backend().get_name() for name in names}))


def weight_files(vllm_config: "VllmConfig") -> tuple[list[Path], str]:
    """Return the files with the weights, and the load format (with the seed, if they are dummy weights).

    Raises `Code.STATE` if no weight file can be found.
    """
    return _files_of(vllm_config.model_config, vllm_config.load_config)


def drafter_weight_files(vllm_config: "VllmConfig") -> tuple[list[Path], str]:
    """Return the same of a draft model. Its layers' KV lies among the model's own.

    Without one, or if the model's own files hold its weights as MTP layers do, there are no files, and the format is
    "none".
    """
    speculative = getattr(vllm_config, "speculative_config", None)
    drafter, model = drafter_model(speculative), vllm_config.model_config
    if drafter is None or (drafter.model, drafter.revision) == (model.model, model.revision):
        return [], "none"
    return _files_of(drafter, getattr(speculative, "draft_load_config", None) or vllm_config.load_config)


def _files_of(model: "ModelConfig", load_config: "LoadConfig") -> tuple[list[Path], str]:
    load_format = str(load_config.load_format)
    if load_format == "dummy":
        return [], f"dummy:{model.seed}"
    folder = Path(model.model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(
                model.model,
                revision=model.revision,
                cache_dir=load_config.download_dir,
                local_files_only=True,
            )
        )
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.gguf"):
        files = list(folder.glob(pattern))
        if files:
            return files, load_format
    raise CWMError(
        Code.STATE, f"there are no weight files in {folder}, so windows can't be bound to them; serve a local model"
    )

"""The options of the engine that decide the KV beside the model's own configuration. Engine thread, at the start.

Each has a field of its own in the passport, so that a refusal can name it. An option that no field names is covered by
the canary. Versions of vLLM differ in their options, and one that a version does not have reads as its default.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

_DEFAULT = "default"


def kv_options(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> dict[str, str]:
    """Return the passport's fields for the options."""
    from vllm import envs

    model, cache = vllm_config.model_config, vllm_config.cache_config
    kernels = getattr(vllm_config, "kernel_config", None)
    return {
        "rotary": _rotary(model),
        "model_impl": "transformers" if model.using_transformers_backend() else "vllm",
        "quantization_options": str(getattr(model, "quantization_config", None) or _DEFAULT),
        "cache_skip_layers": ",".join(getattr(cache, "kv_cache_dtype_skip_layers", ())) or "none",
        "mamba_cache": _mamba(cache, kv_cache_config),
        "groups": _groups(kv_cache_config),
        "drafter": _drafter(vllm_config),
        "attention_options": _changed(getattr(vllm_config, "attention_config", None)),
        "moe_backend": str(getattr(kernels, "moe_backend", "auto")),
        "linear_backend": _linear(kernels),
        "compilation": getattr(vllm_config.compilation_config.mode, "name", "NONE"),
        "batch_invariant": str(bool(getattr(envs, "VLLM_BATCH_INVARIANT", False))),
    }


def _rotary(model: Any) -> str:
    """Return which of its factors a LongRoPE model uses, at all positions. vLLM chooses them by `--max-model-len`."""
    config = getattr(model, "hf_text_config", model.hf_config)
    for parameters in _rope_parameters(config):
        if parameters.get("rope_type", parameters.get("type")) in ("longrope", "su"):
            original = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", 0
            )
            return "longrope, long factors" if model.max_model_len > original else "longrope, short factors"
    return "as configured"


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of each kind of layer. Most models have one set for all."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [each for each in found.values() if isinstance(each, Mapping)]
    yield from nested or [found]


def _mamba(cache: Any, kv_cache_config: "KVCacheConfig") -> str:
    """Return how the states of Mamba layers are kept. The types are resolved, so a default equals its own name."""
    from vllm.v1.kv_cache_interface import MambaSpec

    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    states = [spec for spec in specs if isinstance(spec, MambaSpec)]
    if not states:
        return "none"
    types = sorted({str(dtype).removeprefix("torch.") for spec in states for dtype in spec.dtypes})
    replay = getattr(cache, "use_replayssm", False)
    return f"{'+'.join(types)}, mode {cache.mamba_cache_mode}, replay {replay}"


def _groups(kv_cache_config: "KVCacheConfig") -> str:
    groups = kv_cache_config.kv_cache_groups
    parts = [(type(group.kv_cache_spec).__name__, len(group.layer_names), group.kv_cache_spec) for group in groups]
    return " + ".join(f"{layers} x {kind} of {spec.block_size}" for kind, layers, spec in parts)


def drafter_model(speculative: Any) -> Any:
    """Return the configuration of the model that a speculative configuration drafts with. None if it is not a model."""
    draft = getattr(speculative, "draft_model_config", None)
    return None if draft is getattr(speculative, "target_model_config", None) else draft


def _drafter(vllm_config: "VllmConfig") -> str:
    """Return the method of speculation and the drafter's shape. A draft model's layers lie among the model's own."""
    import hashlib

    speculative = getattr(vllm_config, "speculative_config", None)
    if speculative is None:
        return "none"
    draft = drafter_model(speculative)
    if draft is None:
        return str(speculative.method)
    shape = {name: value for name, value in draft.hf_config.to_dict().items() if not name.endswith("name_or_path")}
    digest = hashlib.sha256(repr(sorted(shape.items(), key=lambda item: item[0])).encode()).hexdigest()
    return f"{speculative.method}, model {digest[:16]}"


def _linear(kernels: Any) -> str:
    by_quantization = getattr(kernels, "linear_backend_per_quant", None) or {}
    named = [f"{name}={backend}" for name, backend in sorted(by_quantization.items())]
    return ",".join([str(getattr(kernels, "linear_backend", "auto")), *named])


def _changed(options: Any) -> str:
    """Return those of the options that do not have their default value."""
    from dataclasses import MISSING, fields, is_dataclass

    if not is_dataclass(options):
        return _DEFAULT
    changed = []
    for each in fields(options):
        value = getattr(options, each.name)
        default: Any = each.default if each.default_factory is MISSING else each.default_factory()
        default = default.default if hasattr(default, "annotation") else default  # pydantic's FieldInfo
        if value != default:
            changed.append(f"{each.name}={getattr(value, 'name', value)}")
    return ",".join(changed) or _DEFAULT

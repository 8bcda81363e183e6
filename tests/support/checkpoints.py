"""Small checkpoints of real architectures with random weights, a few MB each, made once and kept in build/.

The small model's tokenizer is copied into each. Random weights say nothing sensible, but what a wrong byte in the KV
changes shows in every logprob.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from tests.support.engine import ROOT, model_folder

_SEED: Final = 7
_SHARPENED: Final = 3.0
"""Factor of the weights of attention and of MLPs. Without it all tokens would be about as likely."""
_RECURRENT: Final = ("linear_attn", "mamba", "mixer")
_S, _F, _L = "sliding_attention", "full_attention", "linear_attention"
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def _with(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 49152,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        **more,
    }


def _mamba() -> dict[str, Any]:
    return {
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_d_state": 32,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 64,
    }


def _gemma3() -> dict[str, Any]:
    layers = [_S, _S, _F, _S, _S, _F]
    return _with(num_hidden_layers=6, sliding_window=256, query_pre_attn_scalar=64, layer_types=layers)


def _gpt_oss() -> dict[str, Any]:
    return _with(
        sliding_window=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=[_S, _F, _S, _F],
        tie_word_embeddings=False,
    )


def _gemma4() -> dict[str, Any]:
    layers = [_S, _S, _S, _F]
    return _with(
        sliding_window=256,
        layer_types=layers,
        vocab_size_per_layer_input=49152,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )


def _llama4() -> dict[str, Any]:
    return _with(
        intermediate_size_mlp=256,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=256,
        layer_types=["chunked_attention"] * 3 + [_F],
        no_rope_layers=[1, 1, 1, 0],
    )


def _qwen3_next() -> dict[str, Any]:
    return _with(
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        layer_types=[_L, _L, _L, _F],
        decoder_sparse_step=1,
    )


def _falcon_h1() -> dict[str, Any]:
    return _with(**_mamba(), mamba_d_ssm=256)


def _granite() -> dict[str, Any]:
    layers = ["mamba", "attention", "mamba", "attention"]
    return _with(**_mamba(), layer_types=layers, num_local_experts=0, shared_intermediate_size=256)


def _nemotron_h() -> dict[str, Any]:
    return _with(
        layers_block_type=["mamba", "mlp", "attention", "mamba"],
        hybrid_override_pattern="M-*M",
        mamba_num_heads=8,
        mamba_head_dim=32,
        ssm_state_size=32,
        n_groups=1,
        chunk_size=64,
    )


_CONFIGS: Final[dict[str, tuple[str, Callable[[], dict[str, Any]]]]] = {
    "gemma2": ("Gemma2Config", lambda: _with(sliding_window=256, query_pre_attn_scalar=64)),
    "gemma3": ("Gemma3TextConfig", _gemma3),
    "gemma4": ("Gemma4TextConfig", _gemma4),
    "gpt-oss": ("GptOssConfig", _gpt_oss),
    "mistral": ("MistralConfig", lambda: _with(sliding_window=256)),
    "llama": ("LlamaConfig", lambda: _with(num_attention_heads=4, num_key_value_heads=2, head_dim=32)),
    "llama4": ("Llama4TextConfig", _llama4),
    "qwen3-next": ("Qwen3NextConfig", _qwen3_next),
    "falcon-h1": ("FalconH1Config", _falcon_h1),
    "granite": ("GraniteMoeHybridConfig", _granite),
    "nemotron-h": ("NemotronHConfig", _nemotron_h),
}


def checkpoint(name: str) -> Path:
    """Return the folder of the checkpoint, which is made if it is not there."""
    folder = ROOT / "build" / "models" / f"tiny-{name}"
    if not (folder / "config.json").exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        _make(name, unfinished)
        unfinished.rename(folder)
    return folder


def _make(name: str, folder: Path) -> None:
    import transformers

    kind, fields = _CONFIGS[name]
    torch.manual_seed(_SEED)
    config = getattr(transformers, kind)(**fields())
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and not any(part in parameter_name for part in _RECURRENT):
                parameter.mul_(_SHARPENED)
    model.save_pretrained(folder)
    for file in _TOKENIZER:
        shutil.copy(model_folder() / file, folder / file)

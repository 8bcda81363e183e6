"""Small LoRA adapters, in the files that PEFT writes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

_RANK = 4
_STRENGTH = 0.05
"""Of the weights. An adapter must change the logprobs of a small model visibly."""


def write_adapter(folder: Path, model: Path, seed: int) -> Path:
    """Write an adapter of the model's attention, whose weights follow from the seed. Return its folder."""
    config = json.loads((model / "config.json").read_text())
    hidden, size = config["hidden_size"], config["head_dim"]
    outputs = {"q_proj": config["num_attention_heads"] * size, "v_proj": config["num_key_value_heads"] * size}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, output in outputs.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{place}.lora_A.weight"] = torch.randn(_RANK, hidden, generator=generator) * _STRENGTH
            weights[f"{place}.lora_B.weight"] = torch.randn(output, _RANK, generator=generator) * _STRENGTH
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": _RANK,
        "lora_alpha": _RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(outputs),
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder

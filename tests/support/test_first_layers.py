"""first_layers.py: the first layers are the small model's own, and the others are gone."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.first_layers import first_layers


def test_a_checkpoint_keeps_its_first_layers_and_all_that_is_no_layer(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    weights = {f"model.layers.{layer}.mlp.weight": torch.full((2,), float(layer)) for layer in range(12)}
    weights["model.embed_tokens.weight"] = torch.full((2,), 99.0)
    save_file(weights, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": 12, "hidden_size": 2}))
    (model / "tokenizer.json").write_text("{}")
    cut = first_layers(model, tmp_path / "cut", 2)
    kept = load_file(cut / "model.safetensors")
    assert set(kept) == {"model.layers.0.mlp.weight", "model.layers.1.mlp.weight", "model.embed_tokens.weight"}
    assert kept["model.layers.1.mlp.weight"].tolist() == [1.0, 1.0]
    assert json.loads((cut / "config.json").read_text()) == {"num_hidden_layers": 2, "hidden_size": 2}
    assert (cut / "tokenizer.json").exists()

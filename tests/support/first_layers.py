"""The first layers of the small model: tests need answers that depend on every key and value, not good ones.

All 30 layers take five times as long to compute. They are used where an answer has to make sense.
"""

import json
from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import save_file

LAYERS: Final = 6
_WEIGHTS: Final = "model.safetensors"


def first_layers(model: Path, into: Path, layers: int = LAYERS) -> Path:
    """Write a checkpoint with the first layers of `model` into a new folder, and return it."""
    into.mkdir()
    for path in model.iterdir():
        if path.name != _WEIGHTS:
            (into / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config["num_hidden_layers"] = layers
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    (into / "config.json").write_text(json.dumps(config))
    with safe_open(model / _WEIGHTS, framework="pt") as weights:
        kept = {name: weights.get_tensor(name) for name in weights.keys() if _layer_of(name) < layers}  # noqa: SIM118
        save_file(kept, into / _WEIGHTS, metadata={"format": "pt"})
    return into


def _layer_of(name: str) -> int:
    """Return the layer that a weight belongs to, -1 for one of the whole model."""
    _, found, rest = name.partition(".layers.")
    return int(rest.partition(".")[0]) if found else -1

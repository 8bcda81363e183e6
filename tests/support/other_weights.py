"""Other weights in place, as a step of reinforcement learning leaves them."""

from typing import Any

import torch

CLASS = f"{__name__}.OtherWeights"
"""For vLLM's `--worker-extension-cls`."""


class OtherWeights:
    """A mixin for vLLM's workers. A client calls its method with POST /collective_rpc."""

    model_runner: Any

    def change_last_layer(self) -> None:
        """Scale what the last layer's keys and values are computed from. No other layer's KV changes."""
        norms = [weight for name, weight in self.model_runner.model.named_parameters() if "input_layernorm" in name]
        with torch.inference_mode():
            norms[-1].add_(0.5)

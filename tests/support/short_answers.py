"""Ends every answer of a vLLM server after a few tokens.

It is used with `--logits-processors tests.support.short_answers:ShortAnswers`. The first layers of a model never choose
to end, and some clients take an answer that was cut off for a failure.
"""

from typing import Any, Final

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, RequestLogitsProcessor

TOKENS: Final = 24
"""The token after these ends the answer."""


class ShortAnswers(AdapterLogitsProcessor):
    """Forces the model's end token. vLLM calls it in its worker, for each request and token."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._end = int(vllm_config.model_config.hf_config.eos_token_id)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor:
        def end(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(output_ids) >= TOKENS:
                logits[:] = float("-inf")
                logits[self._end] = 0.0
            return logits

        return end

"""The devices that a copy is tried on: the CPU, and a GPU wherever torch sees one."""

from typing import Any, Final

import pytest
import torch

DEVICES: Final[list[Any]] = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch sees none here"),
        ],
    ),
]

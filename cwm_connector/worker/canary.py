"""The print of a canary's blocks on one rank. Transfer thread; blocks."""

import hashlib
from collections.abc import Sequence
from typing import Final

import torch

from cwm_connector.core.identity import with_sample
from cwm_connector.worker.fence import Fence
from cwm_connector.worker.paged_copy import PagedCopier, PagePart, payload_bytes

STRETCHES: Final = 4
"""Parts of the payload, each of some layers."""
VALUES_PER_STRETCH: Final = 16


def canary_of(copier: PagedCopier, block_ids: Sequence[int], after: Fence, dtype: torch.dtype | None) -> str:
    """Return the print of the blocks. `dtype`: the elements' type. None: only equal bytes agree."""
    pinned = torch.cuda.is_available()
    payload = torch.empty(payload_bytes(copier, len(block_ids)), dtype=torch.uint8, pin_memory=pinned)
    copier.gather([PagePart(payload, len(block_ids), 0, block_ids)], after).synchronize()
    digest = hashlib.sha256(payload.numpy()).hexdigest()
    if dtype is None:
        return digest
    stretches = payload.view(dtype).chunk(STRETCHES)
    return with_sample(digest, [value for stretch in stretches for value in _projections(stretch.float())])


def _projections(values: torch.Tensor) -> list[float]:
    """Return sums of the values under fixed random signs, scaled to the size of one value."""
    generator = torch.Generator().manual_seed(values.numel())
    signs = torch.randint(0, 2, (VALUES_PER_STRETCH, values.numel()), generator=generator, dtype=torch.int8) * 2 - 1
    return [float((values * row).sum() / values.numel() ** 0.5) for row in signs]

"""The print of a canary's blocks on one rank. Transfer thread; blocks."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from cwm_connector.core.identity import with_sample
from cwm_connector.worker.fence import Fence
from cwm_connector.worker.paged_copy import PagedCopier, PagePart, payload_bytes

STRETCHES: Final = 4
"""Parts of a sampled payload, each of some layers. A model with several groups has fewer of each."""
VALUES_PER_STRETCH: Final = 16

PageNumbers = Sequence[tuple[torch.dtype, int]]
"""The numbers in a layer's page of one KV cache group: their types, each with its bytes, in their order."""


def canary_of(
    copier: PagedCopier, groups: Sequence[Sequence[int]], after: Fence, numbers: Sequence[PageNumbers]
) -> str:
    """Return the print of each group's blocks. `numbers`: those of each group. Empty: only equal bytes agree."""
    sizes = [payload_bytes(copier, len(ids), group) for group, ids in enumerate(groups)]
    pinned = torch.cuda.is_available()
    payload = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
    payloads = payload.split(sizes)
    parts = [
        PagePart(own, len(ids), 0, ids, group)
        for group, (own, ids) in enumerate(zip(payloads, groups, strict=True))
        if ids
    ]
    copier.gather(parts, after).synchronize()
    digest = hashlib.sha256(payload.numpy()).hexdigest()
    if not numbers:
        return digest
    stretches = max(1, STRETCHES // len(groups))
    values = [each for own, of_group in zip(payloads, numbers, strict=True) for each in _by_type(own, of_group)]
    return with_sample(digest, *([sum_ for part in each.chunk(stretches) for sum_ in _sums(part)] for each in values))


def _by_type(payload: torch.Tensor, numbers: PageNumbers) -> Iterator[torch.Tensor]:
    """Yield the numbers of each type in a group's payload."""
    types, sizes = [dtype for dtype, _ in numbers], [size for _, size in numbers]
    for dtype, part in zip(types, payload.view(-1, sum(sizes)).split(sizes, dim=1), strict=True):
        yield part.contiguous().view(dtype).flatten()


def _sums(values: torch.Tensor) -> list[float]:
    """Return sums of the values under fixed random signs, scaled to the size of one value."""
    values = values.float()
    generator = torch.Generator().manual_seed(values.numel())
    signs = torch.randint(0, 2, (VALUES_PER_STRETCH, values.numel()), generator=generator, dtype=torch.int8) * 2 - 1
    return [float((values * row).sum() / values.numel() ** 0.5) for row in signs]

"""One stretch of host memory, page-locked where there is a CUDA device, that hands out aligned pieces.

LMCache allocates the stretch and keeps account of the pieces. It aligns pieces to the stretch's beginning, and nothing
says where that is: the driver may begin a small one anywhere. O_DIRECT and the kernel see addresses, so the pieces are
taken from the first multiple of 4,096 on.

Any thread, one at a time. The constructor touches all of the memory and can take seconds; it does so without the GIL.
"""

from typing import Any

import torch

from cwm_connector.tiers.chunk import ALIGNMENT
from cwm_connector.tiers.lmcache_parts import MixedMemoryAllocator, TensorMemoryAllocator


class HostPool:
    """`capacity_bytes` of memory, a multiple of 4,096, until `close`. Raises what the system raises if it has none."""

    def __init__(self, capacity_bytes: int) -> None:
        self._memory: Any = MixedMemoryAllocator(capacity_bytes + ALIGNMENT, align_bytes=ALIGNMENT)
        start = -self._memory.buffer.data_ptr() % ALIGNMENT
        aligned = self._memory.buffer[start : start + capacity_bytes]
        self._memory.pin_allocator = TensorMemoryAllocator(aligned, align_bytes=ALIGNMENT)

    def allocate(self, n_bytes: int) -> Any | None:
        """Return LMCache's object for a piece, or None if no piece of that length is free."""
        objects = self._memory.batched_allocate([torch.Size([n_bytes])], [torch.uint8], 1)
        return None if objects is None else objects[0]

    def free(self, memory: Any) -> None:
        """Give a piece back."""
        self._memory.batched_free([memory])

    def close(self) -> None:
        """Give the memory back to the system. No piece may be in use."""
        self._memory.close()

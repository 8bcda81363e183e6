"""`slru`: segmented LRU. Chunks that were used once go before chunks that were used again.

Auto-freezes store much that nobody ever thaws. Under plain LRU a burst of them pushes out the windows that people come
back to. Here they pass through a segment of their own, and only a second use moves a chunk into the protected segment.
"""

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PROTECTED_SHARE: Final = 0.8
"""The share of all chunks that may be protected. Beyond it, the longest unused of them falls back."""


class SegmentedLru(Generic[K]):
    """See `TierPolicy`."""

    def __init__(self) -> None:
        self._once: OrderedDict[K, None] = OrderedDict()
        self._again: OrderedDict[K, None] = OrderedDict()

    def used(self, chunk: K) -> None:
        if chunk in self._again:
            self._again.move_to_end(chunk)
        elif chunk in self._once:
            del self._once[chunk]
            self._again[chunk] = None
            if len(self._again) > PROTECTED_SHARE * len(self):
                fallen, _ = self._again.popitem(last=False)
                self._once[fallen] = None
        else:
            self._once[chunk] = None

    def forget(self, chunk: K) -> None:
        self._once.pop(chunk, None)
        self._again.pop(chunk, None)

    def coldest(self) -> Iterator[K]:
        return itertools.chain(self._once, self._again)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._once or chunk in self._again

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

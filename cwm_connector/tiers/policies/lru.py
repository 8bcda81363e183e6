"""`lru`: the chunk that was used longest ago goes first. The default: it suits work where recent sessions go on."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class LeastRecentlyUsed(Generic[K]):
    """See `TierPolicy`."""

    def __init__(self) -> None:
        self._order: OrderedDict[K, None] = OrderedDict()

    def used(self, chunk: K) -> None:
        self._order[chunk] = None
        self._order.move_to_end(chunk)

    def forget(self, chunk: K) -> None:
        self._order.pop(chunk, None)

    def coldest(self) -> Iterator[K]:
        return iter(self._order)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._order

    def __len__(self) -> int:
        return len(self._order)

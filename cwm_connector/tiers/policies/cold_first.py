"""Lets chunks that nobody has asked for go before all others. A policy orders the others.

A chunk that an auto-freeze saved is cold until somebody thaws or loads it. A chunk that was asked for is hot for
`HOT_S` after each use. What is not hot may make room for an auto-freeze.
"""

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

from cwm_connector.tiers.policies.base import TierPolicy

K = TypeVar("K", bound=Hashable)

HOT_S: Final = 3600.0
"""So long after its last use a chunk makes no room for an auto-freeze."""


class ColdFirst(Generic[K]):
    """See `TierPolicy`. Its owner also says which chunks came without being asked for."""

    def __init__(self, policy: TierPolicy[K], clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._unasked: OrderedDict[K, None] = OrderedDict()
        """The one that came first goes first."""
        self._used_at: dict[K, float] = {}

    def came(self, chunk: K) -> None:
        """Record that the chunk came into the tier and nobody has asked for it. One that was asked for stays hot."""
        if chunk not in self._policy:
            self._unasked.setdefault(chunk)

    def used(self, chunk: K) -> None:
        self._unasked.pop(chunk, None)
        self._used_at[chunk] = self._clock()
        self._policy.used(chunk)

    def forget(self, chunk: K) -> None:
        self._unasked.pop(chunk, None)
        self._used_at.pop(chunk, None)
        self._policy.forget(chunk)

    def coldest(self) -> Iterator[K]:
        return itertools.chain(self._unasked, self._policy.coldest())

    def not_hot(self) -> Iterator[K]:
        """Return the chunks that an auto-freeze may push out, in the order in which they should go."""
        hot_since = self._clock() - HOT_S
        return itertools.chain(
            self._unasked, (chunk for chunk in self._policy.coldest() if self._used_at[chunk] <= hot_since)
        )

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._unasked or chunk in self._policy

    def __len__(self) -> int:
        return len(self._unasked) + len(self._policy)

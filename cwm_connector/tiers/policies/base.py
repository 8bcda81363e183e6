"""The contract of a policy: it learns which chunks are used, and orders them from the least to the most useful.

One policy tells CPU memory what to evict. Another tells the tiering what to move off the disk. A policy only orders.
Its caller decides whether a chunk may go, because nobody reads it and another tier has it. A policy is not thread-safe:
its owner's lock or thread guards it. Every method but `coldest` takes the same time however many chunks there are.
"""

from collections.abc import Hashable, Iterator
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class TierPolicy(Protocol[K]):
    """Order among the chunks of one tier."""

    def used(self, chunk: K) -> None:
        """Record that the chunk came into the tier, or was used in it again."""

    def forget(self, chunk: K) -> None:
        """Record that the chunk has left the tier. An unknown chunk is no error."""

    def coldest(self) -> Iterator[K]:
        """Return all chunks in the order in which they should go. The policy must not change during the iteration."""

    def __contains__(self, chunk: object) -> bool: ...

    def __len__(self) -> int: ...

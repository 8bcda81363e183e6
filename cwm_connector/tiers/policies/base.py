"""The contract of a policy: it is told what is used, and says what has been useful least.

CPU memory asks one what to evict, and tiering asks another what to move to Redis. A policy only orders; whether a chunk
may go (nobody reads it, another tier holds it) its caller decides. It is not thread-safe: its owner's lock or
thread guards it. Every method but `coldest` costs the same however many chunks there are.
"""

from collections.abc import Hashable, Iterator
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class TierPolicy(Protocol[K]):
    """Order among the chunks of one tier."""

    def used(self, chunk: K) -> None:
        """The chunk came into the tier, or was used in it again."""

    def forget(self, chunk: K) -> None:
        """The chunk has left the tier; an unknown one is no error."""

    def coldest(self) -> Iterator[K]:
        """All chunks, whoever should go first. The policy must not change while this is walked."""

    def __contains__(self, chunk: object) -> bool: ...

    def __len__(self) -> int: ...

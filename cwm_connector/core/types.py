"""Types that every folder shares: chunk keys, claims, tiers and times.

Any thread. Nothing here blocks.
"""

import enum
import hashlib
from typing import Final, NewType, Self

from cwm_connector.core.clock import CLOCK

ChunkKey = NewType("ChunkKey", bytes)
"""32 bytes: the SHA-256 of the parent's key and the token ids. See `core/identity.py`."""

Micros = NewType("Micros", int)
"""Microseconds since 1970-01-01T00:00:00Z."""

Claim = NewType("Claim", str)
"""A token that keeps a chunk's bytes in a tier that several engines share.

Each write has a claim of its own. A tier that one engine uses alone has the claim `""`. The bytes stay until the last
claim on them is removed. An engine that deletes an unreferenced chunk therefore can't remove bytes that another engine
has just written under the same key."""

NO_CLAIM: Final = Claim("")


class TierName(enum.StrEnum):
    """The registry of tiers, fastest first: an entry here and a package of the same name in `tiers/` make a tier.

    The name is also the tier's key in results and metrics, and its component in health_check.
    """

    catalog_bit: int
    """Stands for the tier in the catalog's rows, so it must never change. 0: the catalog does not record the tier."""
    shareable: bool
    """Engines that share a catalog can share the tier's bytes. Other tiers are one engine's own."""

    def __new__(cls, name: str, catalog_bit: int = 0, shareable: bool = False) -> Self:
        tier = str.__new__(cls, name)
        tier._value_ = name
        tier.catalog_bit = catalog_bit
        tier.shareable = shareable
        return tier

    CPU = "cpu"
    DISK = "disk", 1
    REDIS = "redis", 2, True

    @property
    def is_durable(self) -> bool:
        """Return True if chunks in the tier outlive the engine, so that the catalog records them."""
        return self.catalog_bit != 0

    @classmethod
    def durable(cls) -> "tuple[TierName, ...]":
        """Return the durable tiers, fastest first."""
        return tuple(tier for tier in cls if tier.is_durable)

    def is_slower_than(self, other: "TierName") -> bool:
        """Return True if `other` comes first in the registry."""
        order = list(TierName)
        return order.index(self) > order.index(other)


def now_micros() -> Micros:
    """Return the current time. It never jumps or goes back while the process lives."""
    return Micros(CLOCK.now_ns() // 1000)


def salt_hash(cache_salt: str) -> bytes:
    """Return the SHA-256 of a cache salt, 32 bytes. Salts are stored and compared in this form only."""
    return hashlib.sha256(cache_salt.encode()).digest()

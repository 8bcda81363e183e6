"""Types that every folder shares: chunk keys, claims, tiers and times.

Any thread. Nothing here blocks.
"""

import enum
import hashlib
import time
from typing import Final, NewType

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
    """Fastest first."""

    CPU = "cpu"
    DISK = "disk"
    REDIS = "redis"


def now_micros() -> Micros:
    """Return the current time."""
    return Micros(time.time_ns() // 1000)


def salt_hash(cache_salt: str) -> bytes:
    """Return the SHA-256 of a cache salt, 32 bytes. Salts are stored and compared in this form only."""
    return hashlib.sha256(cache_salt.encode()).digest()

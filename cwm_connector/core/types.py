"""Types that every folder shares: chunk keys, claims, tiers and times."""

import enum
import hashlib
import time
from typing import Final, NewType

ChunkKey = NewType("ChunkKey", bytes)
"""32 bytes: SHA-256 chain over passport, parent key and token ids. Same content, same key."""

Micros = NewType("Micros", int)
"""Microseconds since 1970-01-01T00:00:00Z."""

Claim = NewType("Claim", str)
"""Who keeps a chunk's bytes in a store that several engines share: one token for each write, `""` where one engine
alone uses the store. Bytes stay as long as one claim on them is left, so that an engine that removes what nobody refers
to any more can't take away what another one has just written anew under the same key."""

NO_CLAIM: Final = Claim("")


class TierName(enum.StrEnum):
    """Fastest first."""

    CPU = "cpu"
    DISK = "disk"
    REDIS = "redis"


def now_micros() -> Micros:
    return Micros(time.time_ns() // 1000)


def salt_hash(cache_salt: str) -> bytes:
    """32 bytes; the only form in which a salt is kept or compared."""
    return hashlib.sha256(cache_salt.encode()).digest()

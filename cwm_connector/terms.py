"""The words that every room shares: what a chunk is called, where it can lie, how time is told."""

import enum
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

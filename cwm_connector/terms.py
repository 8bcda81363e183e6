"""The words that every room shares: what a chunk is called, where it can lie, how time is told."""

import enum
from typing import NewType

ChunkKey = NewType("ChunkKey", bytes)
"""32 bytes: SHA-256 chain over passport, parent key and token ids. Same content, same key."""

Micros = NewType("Micros", int)
"""Microseconds since 1970-01-01T00:00:00Z."""


class TierName(enum.StrEnum):
    """Fastest first."""

    CPU = "cpu"
    DISK = "disk"
    REDIS = "redis"

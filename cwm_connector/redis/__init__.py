"""The one way to talk to Redis: connections, errors, and what a server has to promise.

Transfer threads and the catalog thread. Every call may block for its time-out. Imports `core` only.

    RedisLink         small commands, and waiting until writes are on the server's disk
    ChunkConnection   large values, moved straight from and into the caller's memory
    read_state        the one look at a server; `require_for_*` judge what it found
"""

from cwm_connector.redis.chunk_connection import ChunkConnection, CircuitBreaker, Command, WrongLength
from cwm_connector.redis.errors import NoReply, no_answer
from cwm_connector.redis.link import RedisLink
from cwm_connector.redis.server_check import (
    Durability,
    ServerState,
    info,
    read_state,
    require_for_catalog,
    require_for_chunks,
)

__all__ = [
    "ChunkConnection",
    "CircuitBreaker",
    "Command",
    "Durability",
    "NoReply",
    "RedisLink",
    "ServerState",
    "WrongLength",
    "info",
    "no_answer",
    "read_state",
    "require_for_catalog",
    "require_for_chunks",
]

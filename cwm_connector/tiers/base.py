"""The tiers' contract: where sealed chunks lie, who may touch them, and what "done" means.

A **sealed chunk** is one contiguous buffer: a 4,096-byte header (key, rank, length, layout, checksum) and the payload,
padded with zeros to a multiple of 4,096 bytes. Every tier keeps exactly these bytes, so that what is verified at a
load is what was sealed at the freeze. Sealing and checking are `chunk.py`'s.

Threads: tiers live in a worker process and are used by its transfer threads only, never by a vLLM hook, so they may
block. All methods are thread-safe.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, TierName


class ChunkId(NamedTuple):
    """One rank's part of a chunk."""

    key: ChunkKey
    kv_rank: int


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What a tier holds now, in bytes that it really occupies, and how much it may."""

    used_bytes: int
    limit_bytes: int
    chunks: int


class DurableTier(Protocol):
    """A durable tier below CPU memory: disk, Redis. It moves sealed bytes and checks none: the caller does.

    Futures fail with a CWMError: CWM-4001/4002 for I/O, CWM-4003 where there is no room, CWM-2003 for a chunk that is
    not there, CWM-4004 for one of another length than the buffer. A store never blocks its caller for longer than its
    own time-out; a future that fails because of it says `buffer_in_use` in the error's context: the transfer may still
    go on, so that buffer must not be reused or freed.
    """

    name: TierName
    shared: bool
    """Other engines may write and delete here as well: then every write and delete carries a claim."""

    def write(self, chunk: ChunkId, sealed: memoryview, claim: Claim = NO_CLAIM) -> "Future[None]":
        """Replaces whatever stands under the id and claims it. Done: it survives a power cut once `sync` has returned.

        The buffer must not change until the future is done.
        """

    def sync(self) -> None:
        """Makes every finished write durable and findable after a power cut.

        Raises: CWM-4001; CWM-5002 for a server that can't promise it (a Redis without an append-only file).
        """

    def limit_bytes(self) -> int | None:
        """What it may hold, where it knows; None also while it can't be asked."""

    def condition(self) -> str:
        """In words for people, how it is and what it keeps. Raises: CWM-4002, CWM-5002 with what to do about it."""

    def require_lasting(self) -> None:
        """Returns if what is written here now can be relied on as the only copy. Cheap enough to ask before each batch.

        Raises: CWM-5002 for a server that is away or keeps nothing over a restart.
        """

    def read(self, chunk: ChunkId, into: memoryview) -> "Future[None]":
        """Fills `into` (the sealed length) with unverified bytes."""

    def delete(self, chunk: ChunkId, claim: Claim = NO_CLAIM) -> bool:
        """Ends the claim, and removes the bytes if that was the last one. True if they were there and are gone."""

    def claims_of(self, chunk: ChunkId) -> frozenset[Claim]:
        """The claims on a chunk part; in a store of one engine alone, `NO_CLAIM` or nothing. Raises CWM-4002, 5002."""

    def size_of(self, chunk: ChunkId) -> int | None:
        """The length in bytes of what lies under the id, verified or not; None if nothing does."""

    def inventory(self) -> Iterator[tuple[ChunkId, int]]:
        """What is really there, with lengths in bytes; half-written leftovers are not in it."""

    def sweep_leftovers(self) -> int:
        """Removes what half-finished writes left; returns how many. Only before the first write of this process."""

    def close(self) -> None: ...

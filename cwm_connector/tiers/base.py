"""The tiers' contract: where sealed chunks are kept, who may touch them, and what "done" means.

A **sealed chunk** is one contiguous buffer: a 4,096-byte header (key, rank, length, layout, checksum) and the payload,
padded with zeros to a multiple of 4,096 bytes. Every tier keeps exactly these bytes, so a load verifies the bytes that
the freeze sealed. `chunk.py` seals and checks them.

To add a durable tier, write a package in this folder that implements `DurableTier` and has an `open_tier` function
(`open.py`), and add its entry to the registry, `core.types.TierName`.

Threads: the transfer threads of a worker and the control thread's helpers use a tier, never a vLLM hook, so its methods
may block. All of them are thread-safe.
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
    """How many bytes a tier occupies now, and how many it may."""

    used_bytes: int
    limit_bytes: int
    chunks: int


class DurableTier(Protocol):
    """A durable tier below CPU memory. It moves sealed bytes. The caller checks them.

    Call order: `sweep_leftovers` before the first write of a process, then any method in any order, then `close`. A
    write is durable once its future is done and a later `sync` has returned.

    Futures fail with a CWMError: `Code.WRITE_FAILED` or `Code.READ_FAILED` for I/O, `Code.BACKEND` for a server,
    `Code.QUOTA` where there is no room, `Code.CHUNK_MISSING` for a chunk that is not there, `Code.CORRUPT` for one of
    another length than the buffer. A tier never blocks its caller for longer than its own time-out. A future that fails
    because of the time-out has `buffer_in_use` in the error's context: the transfer may still go on, so that buffer
    must not be reused or freed.
    """

    name: TierName
    shared: bool
    """True if other engines may write and delete here as well. Then every write and delete carries a claim."""

    def write(self, chunk: ChunkId, sealed: memoryview, claim: Claim = NO_CLAIM) -> "Future[None]":
        """Replace whatever is stored under the id, and claim it.

        The buffer must not change until the future is done.
        """

    def sync(self) -> None:
        """Make every finished write durable, so that it is found after a power cut.

        Raises: `Code.WRITE_FAILED`; `Code.BACKEND` for a server that can't promise it (a Redis without an append-only
        file).
        """

    def limit_bytes(self) -> int | None:
        """Return how many bytes the tier may hold; None if it does not know, or can't be asked now."""

    def condition(self) -> str:
        """Describe the tier's state for people.

        Raises: `Code.READ_FAILED` or `Code.BACKEND`, with what to do about it.
        """

    def require_lasting(self) -> None:
        """Return if a copy written here now may be the only one. Cheap enough to call before each batch.

        Raises: `Code.BACKEND` for a server that is away or keeps nothing over a restart.
        """

    def read(self, chunk: ChunkId, into: memoryview) -> "Future[None]":
        """Fill `into`, which has the sealed length, with unverified bytes."""

    def delete(self, chunk: ChunkId, claim: Claim = NO_CLAIM) -> bool:
        """End the claim, and remove the bytes if it was the last one. Return True if they were there and are gone."""

    def claims_of(self, chunk: ChunkId) -> frozenset[Claim]:
        """Return the claims on a chunk's part. In a tier that is not shared that is `NO_CLAIM` or nothing.

        Raises: `Code.READ_FAILED`, `Code.BACKEND`.
        """

    def size_of(self, chunk: ChunkId) -> int | None:
        """Return the length in bytes of what is stored under the id, verified or not; None if nothing is."""

    def inventory(self) -> Iterator[tuple[ChunkId, int]]:
        """Return every stored part with its length in bytes. Half-written leftovers are not among them."""

    def sweep_leftovers(self) -> int:
        """Remove what half-finished writes left, and return how many. Only before the first write of this process."""

    def close(self) -> None:
        """Fail calls that have not begun, and wait for the others as long as their time-out allows."""

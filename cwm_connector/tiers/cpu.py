"""The fastest tier: sealed chunks in one pool of host memory, page-locked where there is a CUDA device.

The memory is one pool (`host_pool.py`). This module decides who uses which piece of it. A piece is **reserved** while
one caller fills it, and then **published** under a chunk's id, so that others find it. Only bytes that passed their
check, or that were sealed here, are published. A **pin** keeps a published chunk in place while somebody reads it. A
chunk without a pin may be evicted whenever a reservation needs memory, in the policy's order. Chunks that nobody has
asked for go before all others. No chunk here is the only copy: an evicted one is still in a durable tier.

Threads: any but the engine's own. One lock guards everything. Only `ready` and the first `reserve` can wait long.
"""

import atexit
import itertools
import math
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.memory import read_memory
from cwm_connector.core.units import MIB
from cwm_connector.tiers.base import ChunkId, TierUsage
from cwm_connector.tiers.chunk import ALIGNMENT
from cwm_connector.tiers.host_pool import HostPool
from cwm_connector.tiers.policies.base import TierPolicy
from cwm_connector.tiers.policies.cold_first import ColdFirst
from cwm_connector.tiers.policies.lru import LeastRecentlyUsed

QUIET_S: Final = 2.0
"""A caller that waits for memory gives up when nobody has given any back for so long."""


@dataclass(frozen=True, slots=True, eq=False)
class HostBuffer:
    """A piece of the pool. Its address is a multiple of 4,096; `tensor` and `view` are the same `nbytes` bytes.

    Both are invalid once the buffer was released or its last pin went: the pool hands the memory to the next caller.
    """

    tensor: torch.Tensor
    """1-D, uint8."""
    view: memoryview
    """Writable, format "B"."""
    nbytes: int
    memory: Any = field(repr=False)
    """LMCache's object, for the tier only."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A chunk id that can be found (it has a buffer) or is being read (it has pins).

    `retired` are buffers that were dropped while pinned. Pins are counted per id, so these are freed when the last pin
    of all goes.
    """

    buffer: HostBuffer | None
    pins: int = 1
    retired: list[HostBuffer] = field(default_factory=list)


class CpuTier:
    """Memory of `capacity_bytes`, taken at once, in the background, and kept until `close`.

    Raises: `Code.MEMORY` if the machine, or the control group of this process, does not have that much available.
    """

    def __init__(self, capacity_bytes: int, policy: TierPolicy[ChunkId] | None = None) -> None:
        self._capacity = capacity_bytes // ALIGNMENT * ALIGNMENT
        available = read_memory().available
        if self._capacity > available:
            raise CWMError(
                Code.MEMORY,
                f"the CPU tier's {self._capacity // MIB} MiB are more than the {available // MIB} MiB of memory that "
                "are available; set CWM_CPU_CACHE_GB lower",
            )
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        """Notified whenever memory was freed, or can be, by eviction."""
        self._freed_at = -math.inf
        self._entries: dict[ChunkId, _Entry] = {}
        self._policy: ColdFirst[ChunkId] = ColdFirst(LeastRecentlyUsed() if policy is None else policy)
        """Knows every chunk that can be found."""
        self._reserved: set[HostBuffer] = set()
        self._evicted: dict[ChunkId, None] = {}
        self._used = 0
        self._closed = False
        self._pool: Future[HostPool] = Future()
        # Touching 4 GiB takes seconds; LMCache does it without the GIL.
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        threading.Thread(target=self._build_pool, args=(device,), name="cwm-cpu-tier", daemon=True).start()
        atexit.register(self._close_at_exit)

    def _build_pool(self, device: int | None) -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # per thread: page-locking would else start a context on device 0
            self._pool.set_result(HostPool(self._capacity))
        except Exception as problem:
            reason = f"the CPU tier could not get {self._capacity // MIB} MiB ({problem}); set CWM_CPU_CACHE_GB lower"
            self._pool.set_exception(CWMError(Code.MEMORY, reason))

    def ready(self) -> None:
        """Wait until the memory is there. Raises: `Code.MEMORY` if the system gave none."""
        self._pool.result()

    # --- one caller's buffers -----------------------------------------------------------------------------------------

    def reserve(self, n_bytes: int, wait_s: float = 0.0, *, keep_hot: bool = False) -> HostBuffer:
        """Return a buffer with unknown content that is the caller's alone until it is published or released.

        Wait up to `wait_s` seconds for memory that others pin or have reserved, but only `QUIET_S` while none of them
        gives anything back. With `keep_hot`, evict no chunk that was asked for lately.

        Raises: `Code.MEMORY` if pinned and reserved buffers leave too little memory. Nothing was evicted then, unless
        the free memory is in pieces that are too small.
        """
        if n_bytes <= 0:
            raise ValueError(f"{n_bytes} bytes can't be reserved")
        self.ready()
        began = time.monotonic()
        with self._lock:
            while True:
                try:
                    buffer = self._reserve(n_bytes, keep_hot)
                except CWMError:
                    deadline = min(began + wait_s, max(began, self._freed_at) + QUIET_S)
                    left = deadline - time.monotonic()
                    if left <= 0 or self._closed or n_bytes > self._capacity:
                        raise
                    self._freed.wait(left)
                else:
                    self._reserved.add(buffer)
                    return buffer

    def release(self, buffer: HostBuffer) -> None:
        """Give a reserved buffer back. Raises ValueError if it was published or given back before."""
        with self._lock:
            self._take_reserved(buffer)
            self._free(buffer)
            self._shut_when_empty()

    # --- chunks -------------------------------------------------------------------------------------------------------

    def publish(self, chunk: ChunkId, buffer: HostBuffer, *, asked_for: bool = True) -> HostBuffer:
        """Let others find a reserved buffer that is filled and sealed. Return the chunk's buffer, pinned once.

        If the chunk is here already, its buffer is pinned and returned, and `buffer` is given back: both hold the same
        bytes. A chunk that nobody has asked for goes before all others until it is used. Raises ValueError if the
        buffer is not a reserved one.
        """
        with self._lock:
            self._take_reserved(buffer)
            self._evicted.pop(chunk, None)
            entry = self._entries.setdefault(chunk, _Entry(None, pins=0))
            if entry.buffer is None:
                entry.buffer = buffer
            else:
                self._free(buffer)
            entry.pins += 1
            if asked_for:
                self._policy.used(chunk)
            else:
                self._policy.came(chunk)
            published = entry.buffer
            if self._closed:
                self._hide(chunk, entry)
            return published

    def pin(self, chunk: ChunkId, *, counts: bool = True) -> HostBuffer | None:
        """Return the chunk's buffer, in place until `unpin`; None if it is not here.

        `counts`: the policy takes it for a use.
        """
        with self._lock:
            entry = self._entries.get(chunk)
            if entry is None or entry.buffer is None:
                return None
            entry.pins += 1
            if counts:
                self._policy.used(chunk)
            return entry.buffer

    def unpin(self, chunk: ChunkId) -> None:
        """End one pin. Raises ValueError if there is none."""
        with self._lock:
            entry = self._entries.get(chunk)
            if entry is None or entry.pins == 0:
                raise ValueError(f"{chunk} is not pinned")
            entry.pins -= 1
            if entry.pins == 0:
                for buffer in entry.retired:
                    self._free(buffer)
                entry.retired.clear()
                self._forget_if_gone(chunk, entry)
                self._shut_when_empty()
                self._note_freed()

    def drop(self, chunk: ChunkId) -> bool:
        """Hide the chunk from now on; its memory is free when its last pin goes. Return False if it was not here."""
        with self._lock:
            entry = self._entries.get(chunk)
            if entry is None or entry.buffer is None:
                return False
            self._hide(chunk, entry)
            return True

    def contains(self, chunk: ChunkId) -> bool:
        """Return True if the chunk is here now. The policy does not take it for a use."""
        with self._lock:
            entry = self._entries.get(chunk)
            return entry is not None and entry.buffer is not None

    def pin_all(self, chunks: Iterable[ChunkId]) -> bool:
        """Pin all the chunks, each until its `unpin`, and return True. If one is not here, pin none and return False.

        The policy does not take it for a use.
        """
        with self._lock:
            found = [self._entries.get(chunk) for chunk in chunks]
            here = [entry for entry in found if entry is not None and entry.buffer is not None]
            if len(here) < len(found):
                return False
            for entry in here:
                entry.pins += 1
            return True

    def take_evicted(self) -> list[ChunkId]:
        """Return the chunks that were evicted since the last call and are not back, oldest first."""
        with self._lock:
            evicted = list(self._evicted)
            self._evicted.clear()
            return evicted

    def free_bytes(self) -> int:
        """Return how many bytes are in nobody's use."""
        with self._lock:
            return self._capacity - self._used

    def usage(self) -> TierUsage:
        """Return the bytes in use (reserved and dropped but pinned buffers too) and the chunks that can be found."""
        with self._lock:
            chunks = sum(entry.buffer is not None for entry in self._entries.values())
            return TierUsage(self._used, self._capacity, chunks)

    def close(self) -> None:
        """Forget every chunk and give the memory back, at once or when the last reserved or pinned buffer goes."""
        if self._pool.exception() is not None:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._freed.notify_all()
            for chunk, entry in list(self._entries.items()):
                self._hide(chunk, entry)
            self._shut_when_empty()

    def _close_at_exit(self) -> None:
        """Give everything back at the interpreter's exit; LMCache complains of objects that nobody gave back."""
        self.close()
        with self._lock:
            for buffer in [*self._reserved, *itertools.chain(*(entry.retired for entry in self._entries.values()))]:
                self._pool.result().free(buffer.memory)

    # --- under the lock -----------------------------------------------------------------------------------------------

    def _reserve(self, n_bytes: int, keep_hot: bool) -> HostBuffer:
        needed = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        if self._closed:
            raise CWMError(Code.MEMORY, "the CPU tier is closed; start the engine again")
        for chunk in self._victims(needed, keep_hot):
            self._evict(chunk)
        while (buffer := self._allocate(n_bytes)) is None:  # enough is free, but in pieces
            unpinned = next(self._evictable(keep_hot), None)
            if unpinned is None:
                raise self._full(needed)
            self._evict(unpinned)
        return buffer

    def _allocate(self, n_bytes: int) -> HostBuffer | None:
        memory = self._pool.result().allocate(n_bytes)
        if memory is None:
            return None
        self._used += memory.get_physical_size()
        return HostBuffer(memory.tensor, memoryview(memory.tensor.numpy()), n_bytes, memory)

    def _free(self, buffer: HostBuffer) -> None:
        self._used -= buffer.memory.get_physical_size()
        self._pool.result().free(buffer.memory)
        self._note_freed()

    def _note_freed(self) -> None:
        self._freed_at = time.monotonic()
        self._freed.notify_all()

    def _shut_when_empty(self) -> None:
        if self._closed and self._used == 0:
            self._pool.result().close()
            atexit.unregister(self._close_at_exit)

    def _take_reserved(self, buffer: HostBuffer) -> None:
        if buffer not in self._reserved:
            raise ValueError("the buffer is not a reserved one of this tier")
        self._reserved.remove(buffer)

    def _hide(self, chunk: ChunkId, entry: _Entry) -> None:
        """Let nobody find the chunk any more; its memory is freed now or with the last pin."""
        if entry.buffer is not None:
            if entry.pins:
                entry.retired.append(entry.buffer)
            else:
                self._free(entry.buffer)
            entry.buffer = None
            self._policy.forget(chunk)
        self._forget_if_gone(chunk, entry)

    def _forget_if_gone(self, chunk: ChunkId, entry: _Entry) -> None:
        if entry.buffer is None and entry.pins == 0:
            del self._entries[chunk]

    def _victims(self, needed: int, keep_hot: bool) -> list[ChunkId]:
        """Return the chunks to evict for `needed` bytes, coldest first. Raises: `Code.MEMORY` if they are too few."""
        free = self._capacity - self._used
        victims: list[ChunkId] = []
        evictable = self._evictable(keep_hot)
        while free < needed:
            chunk = next(evictable, None)
            if chunk is None:
                raise self._full(needed)
            victims.append(chunk)
            buffer = self._entries[chunk].buffer
            free += 0 if buffer is None else buffer.memory.get_physical_size()
        return victims

    def _evictable(self, keep_hot: bool) -> Iterator[ChunkId]:
        order = self._policy.not_hot() if keep_hot else self._policy.coldest()
        return (chunk for chunk in order if self._entries[chunk].pins == 0)

    def _evict(self, chunk: ChunkId) -> None:
        entry = self._entries.pop(chunk)
        self._policy.forget(chunk)
        if entry.buffer is not None:
            self._free(entry.buffer)
        self._evicted[chunk] = None

    def _full(self, needed: int) -> CWMError:
        return CWMError(
            Code.MEMORY,
            f"the CPU tier has no room for {needed} bytes: {self._used} of {self._capacity} are in use; set "
            "CWM_CPU_CACHE_GB higher or wait until other transfers end",
        )

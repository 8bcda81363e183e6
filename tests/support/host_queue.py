"""A stand-in for the driver's queue of copies, over host memory. It makes a copy only when somebody waits for it.

So a buffer that is given away too early, or a fence that nobody waits for, shows in the bytes.
"""

import ctypes
import threading
from dataclasses import dataclass, field

import torch

from cwm_connector.worker.fence import Fence


@dataclass(frozen=True, eq=False)
class Batch:
    """One call of the driver: addresses, lengths, and the fence that it was ordered behind."""

    sources: list[int]
    targets: list[int]
    sizes: list[int]
    after: Fence


@dataclass(eq=False)
class Point:
    """A fence: waiting for it makes the copies that were queued before it."""

    queue: "HostQueue"
    batches: int

    def synchronize(self) -> None:
        self.queue.wait(self.batches)

    def query(self) -> bool:
        return self.queue.made >= self.batches


@dataclass(eq=False)
class HostQueue:
    """Records every batch. With `broken_at`, the call of that number raises, after it has waited for those before."""

    broken_at: int | None = None
    batches: list[Batch] = field(default_factory=list)
    made: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Hold it to make the device take its time."""
    awaited: threading.Event = field(default_factory=threading.Event)
    """Set as soon as somebody waits for copies."""
    gone: bool = False
    """The device has failed. Whoever waits for it learns so."""
    held: list[Fence] = field(default_factory=list)
    """The fences that the model's stream waits for, in order."""

    def mark(self) -> Fence:
        """Return a fence behind all batches until now."""
        return Point(self, len(self.batches))

    def hold(self, until: Fence) -> None:
        """Note that the model's work waits for a fence."""
        self.held.append(until)

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor, after: Fence) -> Fence:
        """Queue a batch."""
        if len(self.batches) == self.broken_at:
            self.wait(len(self.batches))
            raise RuntimeError("the device is gone")
        after.synchronize()
        self.batches.append(Batch(sources.tolist(), targets.tolist(), sizes.tolist(), after))
        return Point(self, len(self.batches))

    def wait(self, batches: int) -> None:
        """Make the first copies that are not made yet, up to so many batches in all."""
        self.awaited.set()
        if self.gone:
            raise RuntimeError("the device is gone")
        with self.lock:
            while self.made < batches:
                one = self.batches[self.made]
                for source, target, size in zip(one.sources, one.targets, one.sizes, strict=True):
                    ctypes.memmove(target, source, size)
                self.made += 1

"""One rank's paged KV cache seen as bytes, and the two copies that matter: blocks -> chunk and chunk -> blocks.

A chunk's payload is contiguous, `[layers, blocks, page_bytes]`: each layer's page of each block exactly as it is in
vLLM's memory.

                block 7          block 2          block 9        <- block_ids of the chunk, in the order of its tokens
    layer 0  | page_bytes    | page_bytes    | page_bytes    |
    layer 1  | page_bytes    | page_bytes    | page_bytes    |

That is the fastest copy there is, and exact for any layout whose pages are dense (FlashAttention's NHD, FlashInfer's
HND, MLA, the CPU's packed K). Its price is that a chunk fits one layout only. The passport names that layout.

Threads: `fence` on the model's thread, after the step's forward; everything else on a transfer thread, and it may
block. The caller guarantees that the blocks it reads are complete and pinned, that those it writes belong to a request
that waits for them, and that payloads stay in place until the copy's fence has passed.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.worker.cuda_queue import CudaQueue
from cwm_connector.worker.fence import PASSED, Fence

MAX_CHECK_THREADS: Final = 10
"""Threads whose checksums keep up with a PCIe 5 bus. On an H100 with 16 cores, 8 and 12 are slower."""


@dataclass(frozen=True, slots=True)
class PagePart:
    """Blocks [first, first + len(block_ids)) of a payload of `blocks` blocks, and the cache's blocks for them."""

    payload: torch.Tensor
    """uint8 of layers x blocks x page_bytes in host memory, page-locked where there is a CUDA device."""
    blocks: int
    first: int
    block_ids: Sequence[int]
    group: int = 0
    """The KV cache group of the blocks."""


class PagedCopier(Protocol):
    """Moves pages. A copy is over when its fence has passed. A call that raises leaves no copy under way."""

    group_bytes: tuple[int, ...]
    """Bytes of one block in all layers of each KV cache group."""
    layout: bytes
    """32-byte fingerprint of how a page is laid out; sealed into every chunk."""
    check_threads: int
    """How many threads compute checksums as fast as the copies go; 0 if the copying thread does it by the way."""

    def fence(self) -> Fence:
        """Return a fence where this step's work on the cache is complete on the model's stream."""

    def hold_model(self, until: Fence) -> None:
        """Let the work that the model queues from now on wait for a fence of this copier. The model's thread."""

    def gather(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Copy blocks into payloads, once `after` has passed. Return the fence behind the copies."""

    def scatter(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Copy payloads into blocks, once `after` has passed. Return the fence behind the copies."""


def payload_bytes(copier: PagedCopier, blocks: int, group: int = 0) -> int:
    """Return the length of the payload of so many blocks."""
    return blocks * copier.group_bytes[group]


def _is_dense(layer: torch.Tensor) -> bool:
    """Return True if one block's elements fill a contiguous stretch of memory, in whatever order."""
    expected = 1
    for size, stride in sorted(zip(layer.shape[1:], layer.stride()[1:], strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return layer.stride(0) >= expected


def page_views(layers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the layers' caches as few views `[layers, blocks, page_words]` (int64) as possible, in the layers' order.

    `layers`: per layer `[blocks, …]` of one dtype, shape and strides. Layers at equal distances in one storage share a
    view (vLLM's usual placement gives one in all). Any other layer gets one of its own.

    Raises: `Code.STATE` for pages that are not dense, of different sizes, or no multiple of 8 bytes.
    """
    first = layers[0]
    if not all(_is_dense(layer) for layer in layers):
        raise CWMError(
            Code.STATE,
            "this KV cache layout scatters a block's page over memory; set VLLM_KV_CACHE_LAYOUT to LBNHC or LBHNC",
        )
    if any(layer.shape != first.shape or layer.stride() != first.stride() for layer in layers):
        raise CWMError(
            Code.STATE,
            "this model's layers have caches of different shapes, which CWM can't freeze yet; serve it without the "
            "connector",
        )
    page = first[0].numel() * first.element_size()
    runs: list[list[torch.Tensor]] = []
    for layer in layers:
        if runs and _continues(runs[-1], layer):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [_view_of(run, page) for run in runs]


def _continues(run: Sequence[torch.Tensor], layer: torch.Tensor) -> bool:
    """Return True if `layer` follows the run's layers in their storage at the run's own distance."""
    if layer.untyped_storage().data_ptr() != run[0].untyped_storage().data_ptr():
        return False
    step = layer.data_ptr() - run[-1].data_ptr()
    return step > 0 if len(run) == 1 else step == run[1].data_ptr() - run[0].data_ptr()


def _view_of(run: Sequence[torch.Tensor], page: int) -> torch.Tensor:
    first, word = run[0], 8
    step = run[1].data_ptr() - first.data_ptr() if len(run) > 1 else page
    block_stride = first.stride(0) * first.element_size()
    start = first.storage_offset() * first.element_size()
    if any(amount % word for amount in (page, step, block_stride, start)):
        raise CWMError(Code.STATE, f"a page of {page} bytes is not a multiple of {word}; choose another block size")
    return torch.empty(0, dtype=torch.int64, device=first.device).set_(
        first.untyped_storage(),
        start // word,
        (len(run), first.shape[0], page // word),
        (step // word, block_stride // word, 1),
    )


def layout_fingerprint(layers: Sequence[torch.Tensor]) -> bytes:
    """Return 32 bytes over all that gives a page's bytes a meaning: shape, strides, dtype, number of layers."""
    first = layers[0]
    facts = (len(layers), tuple(first.shape[1:]), tuple(first.stride()[1:]), str(first.dtype))
    return hashlib.sha256(repr(facts).encode()).digest()


class CpuCopier:
    """Pages and chunks both in host memory: plain copies on the calling thread."""

    check_threads = 0

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        self._views = page_views(layers)
        self.layers = len(layers)
        self._page_words = self._views[0].shape[2]
        self.page_bytes = self._page_words * 8
        self.group_bytes: tuple[int, ...] = (self.layers * self.page_bytes,)
        self.layout = layout_fingerprint(layers)

    def fence(self) -> Fence:
        """Return a passed fence: the forward has returned, so its writes are visible."""
        return PASSED

    def hold_model(self, until: Fence) -> None:
        """Do nothing: each copy was over when it returned."""

    def gather(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Copy blocks into payloads."""
        for part in parts:
            ids = torch.tensor(part.block_ids)
            for view, words in self._with_words(part):
                torch.index_select(view, 1, ids, out=words)
        return PASSED

    def scatter(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Copy payloads into blocks."""
        for part in parts:
            for view, words in self._with_words(part):
                for offset, block in enumerate(part.block_ids):  # index_copy_ is two times slower than these
                    view[:, block].copy_(words[:, offset])
        return PASSED

    def _with_words(self, part: PagePart) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return each view of the cache with its pages of the part, `[layers, len(block_ids), page_words]`."""
        words = part.payload.view(torch.int64).view(self.layers, part.blocks, self._page_words)
        wanted = words[:, part.first : part.first + len(part.block_ids)]
        return zip(self._views, wanted.split([view.shape[0] for view in self._views]), strict=True)


class CopyQueue(Protocol):
    """One direction of the bus: takes copies in batches and makes them in order, beside the model's work."""

    def mark(self) -> Fence:
        """Return a fence at this point of the model's stream. The model's thread."""

    def hold(self, until: Fence) -> None:
        """Let the model's stream wait for a fence of this queue. The model's thread."""

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor, after: Fence) -> Fence:
        """Queue copies between addresses (int64, in bytes), once `after` has passed. Return the fence behind them.

        A call that raises has waited for all copies before it.
        """


class DirectCopier:
    """Copies pages straight between the cache and payloads. A batch is one call of the driver.

    No staging buffer on the device and no kernel. On an H100, 64-KiB pages reach 93 % of a plain copy's rate. Pages
    that lie one behind the other on both sides are one copy, because every copy costs the driver a microsecond.
    """

    def __init__(self, layers: Sequence[torch.Tensor], outward: CopyQueue, inward: CopyQueue) -> None:
        """`outward` leads from the cache to payloads, `inward` back."""
        views = page_views(layers)
        self.layers = len(layers)
        self.page_bytes = views[0].shape[2] * 8
        self.group_bytes: tuple[int, ...] = (self.layers * self.page_bytes,)
        self.layout = layout_fingerprint(layers)
        self.check_threads = min(MAX_CHECK_THREADS, len(os.sched_getaffinity(0)))
        self._outward = outward
        self._inward = inward
        self._keep_alive = views
        bases = [view.data_ptr() + layer * view.stride(0) * 8 for view in views for layer in range(view.shape[0])]
        strides = [view.stride(1) * 8 for view in views for _ in range(view.shape[0])]
        self._base = np.array(bases)[:, None]
        self._stride = np.array(strides)[:, None]
        self._layer = np.arange(self.layers)[:, None]
        self._is_gapless = all(stride == self.page_bytes for stride in strides)
        """A layer's page of the next block lies behind that of this one."""

    def fence(self) -> Fence:
        """Return a fence on the model's stream."""
        return self._outward.mark()

    def hold_model(self, until: Fence) -> None:
        """Let the model's stream wait for the fence."""
        self._inward.hold(until)

    def gather(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Queue the copies of blocks into payloads."""
        pages, words, sizes = self._copies(parts)
        return self._outward.copy(pages, words, sizes, after)

    def scatter(self, parts: Sequence[PagePart], after: Fence) -> Fence:
        """Queue the copies of payloads into blocks."""
        pages, words, sizes = self._copies(parts)
        return self._inward.copy(words, pages, sizes, after)

    def _copies(self, parts: Sequence[PagePart]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the addresses of the parts' pages in the cache and in the payloads, and how many bytes each has.

        A few of NumPy's operations on the whole batch. Those of torch let go of the interpreter's lock, and the thread
        would have to wait for the engine's after each of them.
        """
        blocks, counts, starts, layers = [], [], [], []
        for part in parts:
            for at, count in self._runs(part.block_ids):
                blocks.append(part.block_ids[at])
                counts.append(count)
                starts.append(part.payload.data_ptr() + (part.first + at) * self.page_bytes)
                layers.append(part.blocks * self.page_bytes)
        cache = self._base + self._stride * np.array(blocks)
        payloads = np.array(starts) + self._layer * np.array(layers)
        sizes = np.tile(np.array(counts) * self.page_bytes, self.layers)
        return torch.from_numpy(cache.ravel()), torch.from_numpy(payloads.ravel()), torch.from_numpy(sizes)

    def _runs(self, block_ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield where runs of blocks begin that lie one behind the other, and how many each has."""
        begin = 0
        for at in range(1, len(block_ids) + 1):
            ends = at == len(block_ids) or block_ids[at] != block_ids[at - 1] + 1
            if ends or not self._is_gapless:
                yield begin, at - begin
                begin = at


def copier_for(layers: Sequence[torch.Tensor]) -> "CpuCopier | DirectCopier":
    """Return the copier for the device that the cache is on. Raises: `Code.STATE` for any other device."""
    return copiers_for(layers[0].device)(layers)


def copiers_for(device: torch.device) -> "Callable[[Sequence[torch.Tensor]], CpuCopier | DirectCopier]":
    """Return what makes copiers for the device. On a GPU they share one queue for each direction.

    Raises: `Code.STATE` for any other device.
    """
    if device.type == "cpu":
        return CpuCopier
    if device.type == "cuda":
        outward, inward = CudaQueue(device, from_host=False), CudaQueue(device, from_host=True)
        return lambda layers: DirectCopier(layers, outward, inward)
    raise CWMError(
        Code.STATE, f"CWM copies KV on CPU and CUDA, not on {device.type}; serve this model without the connector"
    )

"""One rank's paged KV cache seen as bytes, and the two copies that matter: blocks -> chunk and chunk -> blocks.

A chunk's payload is `[layers, blocks, page_bytes]`, contiguous: each layer's page of each block exactly as it lies in
vLLM's memory. That is the fastest copy there is and exact for any layout whose pages are dense (FlashAttention's NHD,
FlashInfer's HND, MLA, the CPU's packed K); the price, that a chunk fits one layout only, is what the passport says.

Threads: `fence` on the model's thread, after the step's forward; everything else on a transfer thread. The caller
holds the blocks: those it reads are complete and pinned, those it writes belong to a request that waits for them.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch

from cwm_connector.protocol import Code, CWMError


class Fence(Protocol):
    """A point on the model's stream; copies that read the cache wait for it."""

    def synchronize(self) -> None: ...


class PagedCopier(Protocol):
    """Moves pages. Both copies return when the bytes are in place."""

    layers: int
    page_bytes: int
    layout: bytes
    """32-byte fingerprint of how a page is laid out; sealed into every chunk."""

    def fence(self) -> Fence | None:
        """To be called where this step's KV is complete on the model's stream; None where copies need not wait."""

    def gather(self, block_ids: Sequence[int], payload: torch.Tensor, after: Fence | None) -> None:
        """Copies blocks into `payload`, uint8 of layers x len(block_ids) x page_bytes in host memory."""

    def scatter(self, payload: torch.Tensor, payload_blocks: int, first_block: int, block_ids: Sequence[int]) -> None:
        """Copies blocks [first_block, first_block + len(block_ids)) of a payload of `payload_blocks` into the cache."""


def payload_bytes(copier: PagedCopier, blocks: int) -> int:
    return copier.layers * blocks * copier.page_bytes


def _is_dense(layer: torch.Tensor) -> bool:
    """True if one block's elements fill a contiguous stretch of memory, in whatever order."""
    expected = 1
    for size, stride in sorted(zip(layer.shape[1:], layer.stride()[1:], strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return layer.stride(0) >= expected


def fused_pages(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """One view `[layers, blocks, page_words]` (int64) over the caches of all layers.

    `layers`: per layer `[blocks, …]` of one dtype, shape and strides, at equal distances in one storage or each in a
    storage of its own; the latter gives a list-like stack only if they are equally spaced, so it is refused.
    Raises: CWM-3001 for pages that are not dense or layers that can't be seen as one view.
    """
    first = layers[0]
    if not all(_is_dense(layer) for layer in layers):
        raise CWMError(
            Code.STATE,
            "this KV cache layout scatters a block's page over memory; set VLLM_KV_CACHE_LAYOUT to LBNHC or LBHNC",
        )
    page = first[0].numel() * first.element_size()
    same = all(layer.shape == first.shape and layer.stride() == first.stride() for layer in layers)
    offsets = [layer.data_ptr() - first.data_ptr() for layer in layers]
    step = offsets[1] if len(offsets) > 1 else page * first.shape[0]
    even = offsets == [index * step for index in range(len(layers))] and step > 0
    one_storage = len({layer.untyped_storage().data_ptr() for layer in layers}) == 1
    if not (same and even and one_storage):
        raise CWMError(
            Code.STATE,
            "this model's layers have caches of different shapes, which CWM can't freeze yet; serve it without",
        )
    block_stride = first.stride(0) * first.element_size()
    start = first.storage_offset() * first.element_size()
    word = 8
    if any(amount % word for amount in (page, step, block_stride, start)):
        raise CWMError(Code.STATE, f"a page of {page} bytes is no multiple of {word}; choose another block size")
    words = torch.empty(0, dtype=torch.int64, device=first.device)
    return words.set_(
        first.untyped_storage(),
        start // word,
        (len(layers), first.shape[0], page // word),
        (step // word, block_stride // word, 1),
    )


def layout_fingerprint(layers: Sequence[torch.Tensor]) -> bytes:
    """32 bytes over what makes a page's bytes mean something: shape, order of dimensions, dtype, number of layers."""
    first = layers[0]
    facts = (len(layers), tuple(first.shape[1:]), tuple(first.stride()[1:]), str(first.dtype))
    return hashlib.sha256(repr(facts).encode()).digest()


class _Pages:
    """What both copiers share: the fused view and its sizes."""

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        self._pages = fused_pages(layers)
        self.layers = len(layers)
        self.page_bytes = self._pages.shape[2] * 8
        self.layout = layout_fingerprint(layers)

    def _as_words(self, payload: torch.Tensor, blocks: int) -> torch.Tensor:
        return payload.view(torch.int64).view(self.layers, blocks, self._pages.shape[2])


class CpuCopier(_Pages):
    """Pages and chunks both in host memory: plain copies on the calling thread."""

    def fence(self) -> Fence | None:
        return None  # the forward has returned, so its writes are visible

    def gather(self, block_ids: Sequence[int], payload: torch.Tensor, after: Fence | None) -> None:
        torch.index_select(self._pages, 1, torch.tensor(block_ids), out=self._as_words(payload, len(block_ids)))

    def scatter(self, payload: torch.Tensor, payload_blocks: int, first_block: int, block_ids: Sequence[int]) -> None:
        words = self._as_words(payload, payload_blocks)
        for offset, block in enumerate(block_ids):  # index_copy_ is two times slower than these
            self._pages[:, block].copy_(words[:, first_block + offset])


class CudaCopier(_Pages):
    """Pages in device memory, chunks in pinned host memory: gathered on a side stream through a staging buffer.

    Collecting the pages on the device first (at memory speed) leaves one large copy over the bus instead of one for
    each page, which is what reaches the bus's own rate.
    """

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        super().__init__(layers)
        self._device = layers[0].device
        # Loads and saves run on threads of their own: a stream each, so that neither waits for the other.
        self._out = torch.cuda.Stream(self._device)
        self._in = torch.cuda.Stream(self._device)

    def fence(self) -> Fence | None:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def gather(self, block_ids: Sequence[int], payload: torch.Tensor, after: Fence | None) -> None:
        if isinstance(after, torch.cuda.Event):
            self._out.wait_event(after)
        with torch.cuda.stream(self._out):
            ids = torch.tensor(block_ids, device=self._device)
            staging = torch.index_select(self._pages, 1, ids)
            self._as_words(payload, len(block_ids)).copy_(staging, non_blocking=True)
        self._out.synchronize()

    def scatter(self, payload: torch.Tensor, payload_blocks: int, first_block: int, block_ids: Sequence[int]) -> None:
        words = self._as_words(payload, payload_blocks)
        with torch.cuda.stream(self._in):
            ids = torch.tensor(block_ids, device=self._device)
            staging = words.to(self._device, non_blocking=True)
            self._pages.index_copy_(1, ids, staging[:, first_block : first_block + len(block_ids)])
        self._in.synchronize()


def copier_for(layers: Sequence[torch.Tensor]) -> PagedCopier:
    """The copier for the device that the cache lies on."""
    device = layers[0].device.type
    if device == "cpu":
        return CpuCopier(layers)
    if device == "cuda":
        return CudaCopier(layers)
    raise CWMError(
        Code.STATE, f"CWM copies KV on CPU and CUDA, not on {device}; serve this model without the connector"
    )

"""One rank's paged KV cache seen as bytes, and the two copies that matter: blocks -> chunk and chunk -> blocks.

A chunk's payload is contiguous, `[layers, blocks, page_bytes]`: each layer's page of each block exactly as it is in
vLLM's memory.

                block 7          block 2          block 9        <- block_ids of the chunk, in the order of its tokens
    layer 0  | page_bytes    | page_bytes    | page_bytes    |
    layer 1  | page_bytes    | page_bytes    | page_bytes    |

That is the fastest copy there is, and exact for any layout whose pages are dense (FlashAttention's NHD, FlashInfer's
HND, MLA, the CPU's packed K). Its price is that a chunk fits one layout only. The passport names that layout.

Threads: `fence` on the model's thread, after the step's forward; everything else on a transfer thread, and it may
block. The caller guarantees that the blocks it reads are complete and pinned, and that those it writes belong to a
request that waits for them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from cwm_connector.core.errors import Code, CWMError


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
        """Return a fence where this step's KV is complete on the model's stream; None if copies need not wait."""

    def gather(self, block_ids: Sequence[int], payload: torch.Tensor, after: Fence | None) -> None:
        """Copy blocks into `payload`, uint8 of layers x len(block_ids) x page_bytes in host memory."""

    def scatter(self, payload: torch.Tensor, payload_blocks: int, first_block: int, block_ids: Sequence[int]) -> None:
        """Copy blocks [first_block, first_block + len(block_ids)) of a payload of `payload_blocks` into the cache."""


def payload_bytes(copier: PagedCopier, blocks: int) -> int:
    """Return the length of the payload of so many blocks."""
    return copier.layers * blocks * copier.page_bytes


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


class _Pages:
    """The views and their sizes, for both copiers."""

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        self._views = page_views(layers)
        self.layers = len(layers)
        self._page_words = self._views[0].shape[2]
        self.page_bytes = self._page_words * 8
        self.layout = layout_fingerprint(layers)

    def _as_words(self, payload: torch.Tensor, blocks: int) -> torch.Tensor:
        return payload.view(torch.int64).view(self.layers, blocks, self._page_words)

    def _with_parts(self, words: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return each view of the cache with its part of `words`, which is `[layers, blocks, page_words]`."""
        return zip(self._views, words.split([view.shape[0] for view in self._views]), strict=True)

    def _collect(self, ids: torch.Tensor, words: torch.Tensor) -> None:
        for view, part in self._with_parts(words):
            torch.index_select(view, 1, ids, out=part)


class CpuCopier(_Pages):
    """Pages and chunks both in host memory: plain copies on the calling thread."""

    def fence(self) -> Fence | None:
        return None  # the forward has returned, so its writes are visible

    def gather(self, block_ids: Sequence[int], payload: torch.Tensor, after: Fence | None) -> None:
        self._collect(torch.tensor(block_ids), self._as_words(payload, len(block_ids)))

    def scatter(self, payload: torch.Tensor, payload_blocks: int, first_block: int, block_ids: Sequence[int]) -> None:
        for view, part in self._with_parts(self._as_words(payload, payload_blocks)):
            for offset, block in enumerate(block_ids):  # index_copy_ is two times slower than these
                view[:, block].copy_(part[:, first_block + offset])


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
        words = self._as_words(payload, len(block_ids))
        with torch.cuda.stream(self._out):
            staging = torch.empty_like(words, device=self._device)
            self._collect(torch.tensor(block_ids, device=self._device), staging)
            words.copy_(staging, non_blocking=True)
        self._out.synchronize()

    def scatter(self, payload: torch.Tensor, payload_blocks: int, first_block: int, block_ids: Sequence[int]) -> None:
        wanted = slice(first_block, first_block + len(block_ids))
        with torch.cuda.stream(self._in):
            ids = torch.tensor(block_ids, device=self._device)
            staging = self._as_words(payload, payload_blocks).to(self._device, non_blocking=True)
            for view, part in self._with_parts(staging):
                view.index_copy_(1, ids, part[:, wanted])
        self._in.synchronize()


def copier_for(layers: Sequence[torch.Tensor]) -> PagedCopier:
    """Return the copier for the device that the cache is on. Raises: `Code.STATE` for any other device."""
    device = layers[0].device.type
    if device == "cpu":
        return CpuCopier(layers)
    if device == "cuda":
        return CudaCopier(layers)
    raise CWMError(
        Code.STATE, f"CWM copies KV on CPU and CUDA, not on {device}; serve this model without the connector"
    )

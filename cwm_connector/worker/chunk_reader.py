"""Reads chunks from the fastest tier that has them, verifies each, and hands them over in batches and in order.

Transfer threads only; may block on the tiers. Reads and checks run ahead of the consumer, so that neither the device
nor the bus is ever idle.
"""

import enum
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import TierName
from cwm_connector.core.units import MIB
from cwm_connector.step.jobs import ChunkOutcome
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import HEADER_BYTES, CheckInPieces, ChunkHeader, check, sealed_bytes
from cwm_connector.tiers.cpu import CpuTier, HostBuffer
from cwm_connector.tiers.stack import TierStack
from cwm_connector.worker.checksums import Checksums, Lazy

READ_AHEAD: Final = 4
"""Chunks that are read from a durable tier ahead of their turn, at least."""
BATCH_BYTES: Final = 72 * MIB
"""A batch is as long as this or one chunk. A PCIe 5 bus is busy with it for 1.4 ms, and the model's own copies wait.

Two chunks of an 8B model, 32 MiB and a header each, are one batch.
"""
CHECKED_TOGETHER: Final = 2
"""Chunks that all threads check together, in pieces, as long as the bus has nothing to do."""
RESERVE_WAIT_S: Final = 10.0
"""The longest that a load waits for memory while other transfers give some back. Then its tokens are computed."""


class Purpose(enum.Enum):
    """What the chunks are read for."""

    LOAD = enum.auto()
    """Their bytes go to the device next, so each is checked now, also one that has been in memory for long."""
    PROMOTE = enum.auto()
    """They are to be in memory. What is there already was checked when it came, and is checked again by the load."""


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How one rank's parts of chunks are laid out and named."""

    kv_rank: int
    layout: bytes
    block_tokens: int
    group_bytes: tuple[int, ...]
    """One of vLLM's blocks in all layers of each KV cache group."""

    def id(self, chunk: ChunkSpec) -> ChunkId:
        """Return the id of this rank's part."""
        return ChunkId(chunk.key, self.kv_rank)

    def payload_bytes(self, chunk: ChunkSpec) -> int:
        """Return the length of the part's pages."""
        return chunk.page_count * self.group_bytes[chunk.group]

    def sealed_bytes(self, chunk: ChunkSpec) -> int:
        """Return the length of the part with header and padding."""
        return sealed_bytes(self.payload_bytes(chunk))

    def payload_of(self, chunk: ChunkSpec, buffer: HostBuffer) -> torch.Tensor:
        """Return the pages in the sealed chunk's buffer."""
        return buffer.tensor[HEADER_BYTES : HEADER_BYTES + self.payload_bytes(chunk)]

    def outcome(self, chunk: ChunkSpec, tier: TierName) -> ChunkOutcome:
        """Return the outcome of a job that found or put the part in `tier`."""
        return ChunkOutcome(chunk.key, tier, self.sealed_bytes(chunk))

    def header(self, chunk: ChunkSpec) -> ChunkHeader:
        """Return the header that the part is sealed with."""
        return ChunkHeader(
            key=chunk.key,
            kv_rank=self.kv_rank,
            tokens=chunk.blocks * self.block_tokens,
            blocks=chunk.page_count,
            payload_bytes=self.payload_bytes(chunk),
            layout=self.layout,
        )


@dataclass(frozen=True, slots=True)
class VerifiedChunk:
    """A chunk that passed its checksum under its own key, and its tier. Pinned in CPU memory until `release`."""

    chunk: ChunkSpec
    buffer: HostBuffer
    tier: TierName


@dataclass(frozen=True, slots=True)
class _PendingRead:
    chunk: ChunkSpec
    buffer: HostBuffer
    read: "Future[TierName]"
    verified: "Future[TierName] | Lazy[TierName]"
    is_resident: bool
    """The chunk was in CPU memory; it is pinned there. Otherwise the buffer is reserved."""

    @property
    def is_good(self) -> bool:
        """Return True if the chunk is known to be good, without waiting."""
        return isinstance(self.verified, Future) and self.verified.done() and self.verified.exception() is None


class ChunkReader:
    """Reads through CPU memory: chunks from a slower tier stay there and can be evicted."""

    def __init__(self, cpu: CpuTier, stack: TierStack, shape: ChunkShape, checksums: Checksums) -> None:
        self._cpu = cpu
        self._stack = stack
        self._shape = shape
        self._checksums = checksums
        self._reads_ahead = max(READ_AHEAD, checksums.threads)
        self._ahead = max(READ_AHEAD, 2 * checksums.threads)
        self._first_ahead = max(READ_AHEAD, checksums.threads // 2)
        """Fewer at first, so that the bus waits for one check and not for the preparation of many."""
        self._pieces = max(1, checksums.threads // CHECKED_TOGETHER)

    def pin_all(self, chunks: Iterable[ChunkSpec]) -> bool:
        """Pin the chunks and return True if nothing has to be read from a durable tier. Otherwise pin none."""
        return self._cpu.pin_all(self._shape.id(chunk) for chunk in chunks)

    def unpin_all(self, chunks: Iterable[ChunkSpec]) -> None:
        """End the pins of `pin_all`."""
        for chunk in chunks:
            self._cpu.unpin(self._shape.id(chunk))

    def read(
        self, chunks: Iterable[ChunkSpec], purpose: Purpose, make_room: Callable[[], bool]
    ) -> Generator[list[VerifiedChunk], None, None]:
        """Yield the chunks in order, in batches. The caller releases each batch when it is done with it.

        `make_room` is called when there is no memory to read the next chunk into. It releases earlier batches and
        returns True, or returns False if there are none.

        Raises: at the first chunk that can't be read, `Code.CHUNK_MISSING` if it is not there, `Code.CORRUPT` if no
        tier has intact bytes, `Code.READ_FAILED` or `Code.BACKEND` if it is unreadable for now, `Code.MEMORY` if there
        is no memory to read it into.
        """
        waiting, pending = deque(chunks), deque[_PendingRead]()
        ahead, pieces = self._first_ahead, self._pieces
        try:
            while waiting or pending:
                self._read_ahead(waiting, pending, purpose, make_room, ahead, pieces)
                ahead, pieces = min(2 * ahead, self._ahead), max(1, pieces // 2)
                batch = [self._finish(pending.popleft())]
                size = batch[0].buffer.nbytes
                while pending and pending[0].is_good and size + pending[0].buffer.nbytes <= BATCH_BYTES:
                    size += pending[0].buffer.nbytes
                    batch.append(self._finish(pending.popleft()))
                yield batch
        finally:
            for each in pending:
                self._abandon(each)

    def release(self, batch: Sequence[VerifiedChunk]) -> None:
        """Let the chunks of a batch be evicted. Nothing may read their buffers any more."""
        for each in batch:
            self._cpu.unpin(self._shape.id(each.chunk))

    def _read_ahead(
        self,
        waiting: "deque[ChunkSpec]",
        pending: "deque[_PendingRead]",
        purpose: Purpose,
        make_room: Callable[[], bool],
        ahead: int,
        pieces: int,
    ) -> None:
        while waiting and len(pending) < ahead:
            if sum(not each.is_resident for each in pending) >= self._reads_ahead:
                return
            try:
                pending.append(self._start(waiting[0], purpose, pieces))
            except CWMError:
                if pending:
                    return  # tried again at this chunk's turn, when those before it have freed memory
                if make_room():
                    continue
                if purpose is Purpose.PROMOTE:
                    raise
                pending.append(self._start(waiting[0], purpose, pieces, RESERVE_WAIT_S))
            waiting.popleft()

    def _start(self, chunk: ChunkSpec, purpose: Purpose, pieces: int, wait_s: float = 0.0) -> _PendingRead:
        resident = self._cpu.pin(self._shape.id(chunk))
        if resident is not None:
            there = Future[TierName]()
            there.set_result(TierName.CPU)
            verified = there if purpose is Purpose.PROMOTE else self._check_resident(chunk, resident, there, pieces)
            return _PendingRead(chunk, resident, there, verified, is_resident=True)
        return self._start_from_tiers(chunk, wait_s)

    def _start_from_tiers(self, chunk: ChunkSpec, wait_s: float = 0.0) -> _PendingRead:
        buffer = self._cpu.reserve(self._shape.sealed_bytes(chunk), wait_s)
        read = self._stack.read(self._shape.id(chunk), buffer.view)
        return _PendingRead(chunk, buffer, read, self._verified(chunk, buffer, read), is_resident=False)

    def _check_resident(
        self, chunk: ChunkSpec, buffer: HostBuffer, there: "Future[TierName]", pieces: int
    ) -> "Future[TierName] | Lazy[TierName]":
        if pieces == 1:
            return self._verified(chunk, buffer, there)
        checked = CheckInPieces(buffer.view, self._shape.header(chunk), pieces)

        def conclude(checksums: list[int]) -> TierName:
            checked.conclude(checksums)
            return TierName.CPU

        return self._checksums.together(checked.work(), conclude)

    def _verified(
        self, chunk: ChunkSpec, buffer: HostBuffer, read: "Future[TierName]"
    ) -> "Future[TierName] | Lazy[TierName]":
        return self._checksums.after(read, partial(check, buffer.view, self._shape.header(chunk)))

    def _finish(self, one: _PendingRead) -> VerifiedChunk:
        chunk_id = self._shape.id(one.chunk)
        if not one.is_resident:
            tier = self._wait_until_verified(one)
            return VerifiedChunk(one.chunk, self._cpu.publish(chunk_id, one.buffer), tier)
        try:
            tier = one.verified.result()
        except CWMError:
            self._cpu.drop(chunk_id)
            self._cpu.unpin(chunk_id)
            return self._finish(self._start_from_tiers(one.chunk))  # memory went bad; a durable tier may be intact
        return VerifiedChunk(one.chunk, one.buffer, tier)

    def _wait_until_verified(self, one: _PendingRead) -> TierName:
        """Return the tier whose good bytes are in the buffer. Raises as `read`; then the buffer is released."""
        corrupt: CWMError | None = None
        read, verified = one.read, one.verified
        while True:
            try:
                return verified.result()
            except BaseException as problem:
                if not isinstance(problem, CWMError) or read.exception() is not None:
                    self._release_after(one.buffer, read, verified)
                    if corrupt is not None and isinstance(problem, CWMError) and problem.code is Code.CHUNK_MISSING:
                        raise corrupt from None
                    raise
                corrupt = problem  # the tier has answered, with bytes that are not the chunk
            tier = read.result()
            self._stack.on_bad(one.chunk.key, tier)
            read = self._stack.read(self._shape.id(one.chunk), one.buffer.view, below=tier)
            verified = self._verified(one.chunk, one.buffer, read)

    def _abandon(self, one: _PendingRead) -> None:
        """Give a chunk that nobody takes any more back, when neither a device nor a check uses its buffer."""
        if one.is_resident:
            chunk_id = self._shape.id(one.chunk)
            _when_over(one.verified, lambda: self._cpu.unpin(chunk_id))
        else:
            self._release_after(one.buffer, one.read, one.verified)

    def _release_after(
        self, buffer: HostBuffer, read: "Future[TierName]", verified: "Future[TierName] | Lazy[TierName]"
    ) -> None:
        read.add_done_callback(lambda read: _when_over(verified, lambda: release_after(self._cpu, buffer, read)))


def _when_over(verified: "Future[Any] | Lazy[Any]", then: Callable[[], None]) -> None:
    """Call `then` when no thread checks the chunk any more."""
    if isinstance(verified, Future):
        verified.add_done_callback(lambda _: then())
    else:
        then()


def is_buffer_in_use(failure: BaseException | None) -> bool:
    """Return True if the failed transfer timed out and may still be going on. Its buffer must not be used again."""
    return isinstance(failure, CWMError) and bool(failure.context.get("buffer_in_use"))


def release_after(cpu: CpuTier, buffer: HostBuffer, transfer: "Future[Any]") -> None:
    """Release the buffer of a transfer that is over, unless it may still be in use."""
    if not is_buffer_in_use(transfer.exception()):
        cpu.release(buffer)

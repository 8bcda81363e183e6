"""Reads chunks one after the other from the fastest tier that has them, and verifies each.

Transfer threads only; may block on the tiers. Reads run a few chunks ahead of the consumer, so that the device is never
idle.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import TierName
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import ChunkHeader, check, sealed_bytes
from cwm_connector.tiers.cpu import CpuTier, HostBuffer
from cwm_connector.tiers.stack import TierStack

READ_AHEAD: Final = 4


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How one rank's parts of chunks are laid out and named."""

    kv_rank: int
    layout: bytes
    block_tokens: int
    block_bytes: int

    def id(self, chunk: ChunkSpec) -> ChunkId:
        """Return the id of this rank's part."""
        return ChunkId(chunk.key, self.kv_rank)

    def payload_bytes(self, chunk: ChunkSpec) -> int:
        """Return the length of the part's pages."""
        return chunk.blocks * self.block_bytes

    def sealed_bytes(self, chunk: ChunkSpec) -> int:
        """Return the length of the part with header and padding."""
        return sealed_bytes(self.payload_bytes(chunk))

    def header(self, chunk: ChunkSpec) -> ChunkHeader:
        """Return the header that the part is sealed with."""
        return ChunkHeader(
            key=chunk.key,
            kv_rank=self.kv_rank,
            tokens=chunk.blocks * self.block_tokens,
            blocks=chunk.blocks,
            payload_bytes=self.payload_bytes(chunk),
            layout=self.layout,
        )


@dataclass(frozen=True, slots=True)
class VerifiedChunk:
    """A chunk that passed its checksum under its own key, and its tier. Valid until the next one is taken."""

    chunk: ChunkSpec
    buffer: HostBuffer
    tier: TierName


@dataclass(frozen=True, slots=True)
class _PendingRead:
    chunk: ChunkSpec
    buffer: HostBuffer
    future: "Future[TierName] | None"
    """None if the chunk was in CPU memory; it is pinned there."""


class ChunkReader:
    """Reads through CPU memory: chunks from a slower tier stay there and can be evicted."""

    def __init__(self, cpu: CpuTier, stack: TierStack, shape: ChunkShape) -> None:
        self._cpu = cpu
        self._stack = stack
        self._shape = shape

    def read(self, chunks: Iterable[ChunkSpec]) -> Iterator[VerifiedChunk]:
        """Yield the chunks in order.

        Raises: at the first chunk that can't be read, `Code.CHUNK_MISSING` if it is not there, `Code.CORRUPT` if no
        tier has intact bytes, `Code.READ_FAILED` or `Code.BACKEND` if it is unreadable for now, `Code.MEMORY` if there
        is no memory to read it into.
        """
        waiting, pending = deque(chunks), deque[_PendingRead]()
        try:
            while waiting or pending:
                self._read_ahead(waiting, pending)
                yield from self._finish(pending.popleft())
        finally:
            for each in pending:
                self._abandon(each)

    def _read_ahead(self, waiting: "deque[ChunkSpec]", pending: "deque[_PendingRead]") -> None:
        while waiting and len(pending) < READ_AHEAD:
            try:
                pending.append(self._start(waiting[0]))
            except CWMError:
                if pending:
                    return  # tried again at this chunk's turn, when those before it have freed memory
                raise
            waiting.popleft()

    def _start(self, chunk: ChunkSpec) -> _PendingRead:
        resident = self._cpu.pin(self._shape.id(chunk))
        if resident is not None:
            return _PendingRead(chunk, resident, None)
        buffer = self._cpu.reserve(self._shape.sealed_bytes(chunk))
        return _PendingRead(chunk, buffer, self._stack.read(self._shape.id(chunk), buffer.view))

    def _finish(self, one: _PendingRead) -> Iterator[VerifiedChunk]:
        chunk_id = self._shape.id(one.chunk)
        if one.future is None:
            try:
                check(one.buffer.view, self._shape.header(one.chunk))
            except CWMError:
                self._cpu.drop(chunk_id)
                self._cpu.unpin(chunk_id)
                yield from self._finish(self._start(one.chunk))  # memory went bad; a durable tier may be intact
                return
            try:
                yield VerifiedChunk(one.chunk, one.buffer, TierName.CPU)
            finally:
                self._cpu.unpin(chunk_id)
            return
        tier = self._wait_until_verified(one, one.future)
        buffer = self._cpu.publish(chunk_id, one.buffer)
        try:
            yield VerifiedChunk(one.chunk, buffer, tier)
        finally:
            self._cpu.unpin(chunk_id)

    def _wait_until_verified(self, one: _PendingRead, read: "Future[TierName]") -> TierName:
        """Return the tier whose good bytes are in the buffer. Raises as `read`; then the buffer is released."""
        corrupt: CWMError | None = None
        while True:
            try:
                tier = read.result()
            except BaseException as problem:
                read.add_done_callback(lambda read: release_after(self._cpu, one.buffer, read))
                if corrupt is not None and isinstance(problem, CWMError) and problem.code is Code.CHUNK_MISSING:
                    raise corrupt from None
                raise
            try:
                check(one.buffer.view, self._shape.header(one.chunk))
            except CWMError as problem:
                corrupt = problem
                self._stack.on_bad(one.chunk.key, tier)
                read = self._stack.read(self._shape.id(one.chunk), one.buffer.view, below=tier)
            else:
                return tier

    def _abandon(self, one: _PendingRead) -> None:
        if one.future is None:
            self._cpu.unpin(self._shape.id(one.chunk))
        else:  # not before the device has stopped writing into it
            one.future.add_done_callback(lambda read: release_after(self._cpu, one.buffer, read))


def is_buffer_in_use(failure: BaseException | None) -> bool:
    """Return True if the failed transfer timed out and may still be going on. Its buffer must not be used again."""
    return isinstance(failure, CWMError) and bool(failure.context.get("buffer_in_use"))


def release_after(cpu: CpuTier, buffer: HostBuffer, transfer: "Future[Any]") -> None:
    """Release the buffer of a transfer that is over, unless it may still be in use."""
    if not is_buffer_in_use(transfer.exception()):
        cpu.release(buffer)

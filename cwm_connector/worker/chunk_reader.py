"""Verified chunks, one after the other, from the fastest tier that has them.

Transfer threads only. Reads run a few chunks ahead of the consumer, so that the device is never idle.
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
    """What a worker knows of its chunks' bytes, one rank's."""

    kv_rank: int
    layout: bytes
    block_tokens: int
    block_bytes: int

    def id(self, chunk: ChunkSpec) -> ChunkId:
        return ChunkId(chunk.key, self.kv_rank)

    def payload_bytes(self, chunk: ChunkSpec) -> int:
        return chunk.blocks * self.block_bytes

    def sealed_bytes(self, chunk: ChunkSpec) -> int:
        return sealed_bytes(self.payload_bytes(chunk))

    def header(self, chunk: ChunkSpec) -> ChunkHeader:
        return ChunkHeader(
            key=chunk.key,
            kv_rank=self.kv_rank,
            tokens=chunk.blocks * self.block_tokens,
            blocks=chunk.blocks,
            payload_bytes=self.payload_bytes(chunk),
            layout=self.layout,
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """A chunk that passed its checksum under its own key, and the tier it came from. Valid until the next one."""

    chunk: ChunkSpec
    buffer: HostBuffer
    tier: TierName


@dataclass(frozen=True, slots=True)
class _Reading:
    chunk: ChunkSpec
    buffer: HostBuffer
    future: "Future[TierName] | None"
    """None: the chunk was in CPU memory and is pinned there."""


class ChunkReader:
    """Reads through CPU memory: what came from a colder tier stays there, evictable."""

    def __init__(self, cpu: CpuTier, stack: TierStack, shape: ChunkShape) -> None:
        self._cpu = cpu
        self._stack = stack
        self._shape = shape

    def read(self, chunks: Iterable[ChunkSpec]) -> Iterator[Fetched]:
        """The chunks in order.

        Raises: CWMError at the first chunk that can't be had: 2003 not there, 4004 no tier has intact bytes, 4002 or
        5002 unreadable for now, 7001 no memory to read it into.
        """
        waiting, reading = deque(chunks), deque[_Reading]()
        try:
            while waiting or reading:
                self._read_ahead(waiting, reading)
                yield from self._settle(reading.popleft())
        finally:
            for each in reading:
                self._abandon(each)

    def _read_ahead(self, waiting: "deque[ChunkSpec]", reading: "deque[_Reading]") -> None:
        while waiting and len(reading) < READ_AHEAD:
            try:
                reading.append(self._start(waiting[0]))
            except CWMError:
                if reading:
                    return  # tried again at this chunk's turn; where memory is short, those before it make room
                raise
            waiting.popleft()

    def _start(self, chunk: ChunkSpec) -> _Reading:
        resident = self._cpu.pin(self._shape.id(chunk))
        if resident is not None:
            return _Reading(chunk, resident, None)
        buffer = self._cpu.reserve(self._shape.sealed_bytes(chunk))
        return _Reading(chunk, buffer, self._stack.read(self._shape.id(chunk), buffer.view))

    def _settle(self, one: _Reading) -> Iterator[Fetched]:
        chunk_id = self._shape.id(one.chunk)
        if one.future is None:
            try:
                check(one.buffer.view, self._shape.header(one.chunk))
            except CWMError:
                self._cpu.drop(chunk_id)
                self._cpu.unpin(chunk_id)
                yield from self._settle(self._start(one.chunk))  # memory went bad; a durable tier may be intact
                return
            try:
                yield Fetched(one.chunk, one.buffer, TierName.CPU)
            finally:
                self._cpu.unpin(chunk_id)
            return
        tier = self._arrived(one, one.future)
        buffer = self._cpu.publish(chunk_id, one.buffer)
        try:
            yield Fetched(one.chunk, buffer, tier)
        finally:
            self._cpu.unpin(chunk_id)

    def _arrived(self, one: _Reading, read: "Future[TierName]") -> TierName:
        """The tier that had good bytes; they are in the buffer. Raises what `fetch` does; the buffer is given back."""
        corrupt: CWMError | None = None
        while True:
            try:
                tier = read.result()
            except BaseException as problem:
                read.add_done_callback(lambda read: give_back(self._cpu, one.buffer, read))
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

    def _abandon(self, one: _Reading) -> None:
        if one.future is None:
            self._cpu.unpin(self._shape.id(one.chunk))
        else:  # not before the device has stopped writing into it
            one.future.add_done_callback(lambda read: give_back(self._cpu, one.buffer, read))


def in_use(failure: BaseException | None) -> bool:
    """True if the transfer that failed so was given up and may still be going on: its buffer is lost."""
    return isinstance(failure, CWMError) and bool(failure.context.get("buffer_in_use"))


def give_back(cpu: CpuTier, buffer: HostBuffer, transfer: "Future[Any]") -> None:
    """Releases a transfer's buffer, unless it may still be in use."""
    if not in_use(transfer.exception()):
        cpu.release(buffer)

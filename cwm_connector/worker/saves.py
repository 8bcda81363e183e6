"""Saves: blocks -> chunks in CPU memory -> the durable tiers.

One transfer thread. Copies come first, because vLLM waits for its blocks. When all are made, or the save holds its
share of CPU memory, chunks are sealed and written, several at a time. The share is bounded, so a freeze of any size
leaves the rest to others. Blocks are copied from the end of the sequence to its beginning, because vLLM reuses the end
first.

A save that nobody asked for leaves hot chunks where they are. It takes free memory and cold chunks. If there are none,
it takes one small batch from the others, goes through that over and over, and waits.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.step.jobs import ChunkBlocks, ChunkOutcome, Phase, Report, SaveJob
from cwm_connector.tiers.chunk import seal
from cwm_connector.tiers.cpu import CpuTier, HostBuffer
from cwm_connector.tiers.stack import TierStack
from cwm_connector.worker.checksums import Checksums
from cwm_connector.worker.chunk_reader import BATCH_BYTES, RESERVE_WAIT_S, ChunkShape, is_buffer_in_use
from cwm_connector.worker.fence import Fence
from cwm_connector.worker.outbox import Outbox
from cwm_connector.worker.paged_copy import PagedCopier, PagePart

SHARE_OF_MEMORY: Final = 0.4
"""The part of the CPU tier that one save may hold while its chunks are not written yet, and keep afterwards."""
UNASKED_SHARE: Final = 0.05
"""The part of the CPU tier, or one chunk, that a save which nobody asked for may take from hot chunks."""
UNASKED_WAITS: Final = 3
"""Such a save waits so many times as long for memory that others pin before it fails."""
BATCHES_UNDER_WAY: Final = 2
"""Batches that the bus has, so that it goes on while the next one is prepared."""
WRITES_AHEAD: Final = 8
"""Chunks that are being sealed or written at the same time: more than a tier writes at once."""


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """A chunk in a reserved buffer that is not written to the tiers yet."""

    chunk: ChunkSpec
    buffer: HostBuffer


@dataclass(frozen=True, slots=True)
class _Written:
    """A chunk that is being sealed and then written to every tier of the job."""

    one: _Captured
    writes: "Future[list[Future[None]]]"
    """The seal, and then the writes."""

    def problems(self) -> list[BaseException]:
        """Wait for the seal and all writes, and return what went wrong."""
        if (unsealed := self.writes.exception()) is not None:
            return [unsealed]
        return [problem for write in self.writes.result() if (problem := write.exception()) is not None]


@dataclass(frozen=True, slots=True)
class SaveParts:
    """What all saves of one rank share."""

    rank: int
    copier: PagedCopier
    cpu: CpuTier
    stack: TierStack
    shape: ChunkShape
    checksums: Checksums
    outbox: Outbox


class Save:
    """One save under way. `run` once."""

    def __init__(self, parts: SaveParts, job: SaveJob, after: Fence) -> None:
        """`after` is behind the step that computed the blocks."""
        self._parts = parts
        self._job = job
        self._after = after
        self._tiers = [parts.stack.durable_tiers[tier] for tier in job.tiers]
        self._budget = int(SHARE_OF_MEMORY * parts.cpu.usage().limit_bytes)
        self._held = 0
        """Bytes of the buffers in the three queues."""
        self._kept = 0
        """Bytes of this save's chunks that stay in CPU memory."""
        self._under_way: deque[tuple[list[_Captured], Fence]] = deque()
        self._captured: deque[_Captured] = deque()
        self._written: deque[_Written] = deque()
        self._outcomes: list[ChunkOutcome] = []
        self._chunks_read = 0
        """Chunks whose blocks were copied out, from the end."""

    def run(self) -> None:
        """Make the job's chunks durable, and report it captured and finished.

        Raises: what the copies or the tiers raise. Then nothing of it stays in CPU memory but what was written.
        """
        started = time.perf_counter()
        try:
            for batch in self._batches():
                self._capture(batch)
            self._settle_captures(0)
            self._report(Phase.CAPTURED)
            while self._captured or self._written:
                self._write_captured()
                self._finish_oldest()
            for tier in self._tiers:
                tier.sync()
        finally:
            self._give_up_the_rest()
        self._report(Phase.FINISHED, tuple(self._outcomes), time.perf_counter() - started)

    def _batches(self) -> Iterator[list[ChunkBlocks]]:
        """Yield the job's chunks from the end, in batches of as many as the bus takes at once."""
        room = min(BATCH_BYTES, self._budget // (BATCHES_UNDER_WAY + 1))
        if not self._job.asked_for:
            room = min(room, int(UNASKED_SHARE * self._parts.cpu.usage().limit_bytes))
        batch: list[ChunkBlocks] = []
        size = 0
        for part in reversed(self._job.chunks):
            length = self._parts.shape.sealed_bytes(part.chunk)
            if batch and size + length > room:
                yield batch
                batch, size = [], 0
            batch.append(part)
            size += length
        if batch:
            yield batch

    def _capture(self, batch: Sequence[ChunkBlocks]) -> None:
        """Queue the copies of a batch, as soon as the share of memory allows it."""
        need = sum(self._parts.shape.sealed_bytes(part.chunk) for part in batch)
        while self._held and self._held + need > self._budget:
            self._make_room()
        taken: list[_Captured] = []
        try:
            for part in batch:
                taken.append(_Captured(part.chunk, self._reserve(self._parts.shape.sealed_bytes(part.chunk))))
            pages = [self._part(part, one) for part, one in zip(batch, taken, strict=True)]
            copied = self._parts.copier.gather(pages, self._after)
        except BaseException:
            for one in taken:
                self._parts.cpu.release(one.buffer)
            raise
        self._held += need
        self._under_way.append((taken, copied))
        self._settle_captures(BATCHES_UNDER_WAY)

    def _part(self, part: ChunkBlocks, one: _Captured) -> PagePart:
        payload = self._parts.shape.payload_of(part.chunk, one.buffer)
        return PagePart(payload, part.chunk.page_count, 0, part.block_ids, part.chunk.group)

    def _reserve(self, size: int) -> HostBuffer:
        while self._held:
            try:
                return self._parts.cpu.reserve(size, keep_hot=not self._job.asked_for)
            except CWMError as problem:
                if problem.code is not Code.MEMORY:
                    raise
                self._make_room()
        if not self._job.asked_for:
            for _ in range(UNASKED_WAITS - 1):
                with suppress(CWMError):
                    return self._parts.cpu.reserve(size, RESERVE_WAIT_S)
        return self._parts.cpu.reserve(size, RESERVE_WAIT_S)

    def _make_room(self) -> None:
        """Wait until the oldest chunk is written. Its memory is free then, or can be."""
        self._settle_captures(0)
        self._write_captured()
        self._finish_oldest()

    def _settle_captures(self, left: int) -> None:
        """Wait for the oldest copies until so many batches are under way."""
        while len(self._under_way) > left:
            taken, copied = self._under_way[0]
            copied.synchronize()
            self._under_way.popleft()
            self._captured += taken
            self._chunks_read += len(taken)
            self._report(Phase.RUNNING)

    def _write_captured(self) -> None:
        """Have the next chunks sealed and written, as many as keep the tiers busy.

        More would only take the memory's bandwidth from the captures, and the lock of the interpreter from the engine.
        """
        while self._captured and len(self._written) < WRITES_AHEAD:
            one = self._captured[0]
            self._written.append(_Written(one, self._parts.checksums.run(partial(self._seal_and_write, one))))
            self._captured.popleft()

    def _seal_and_write(self, one: _Captured) -> "list[Future[None]]":
        seal(one.buffer.view, self._parts.shape.header(one.chunk))
        chunk_id = self._parts.shape.id(one.chunk)
        return [tier.write(chunk_id, one.buffer.view, self._job.claim) for tier in self._tiers]

    def _finish_oldest(self) -> None:
        written = self._written[0]
        problems = written.problems()
        if problems:
            raise problems[0]
        self._written.popleft()
        self._held -= written.one.buffer.nbytes
        self._outcomes.append(self._parts.shape.outcome(written.one.chunk, self._job.tiers[0]))
        self._keep(written.one)
        self._report(Phase.RUNNING)

    def _keep(self, one: _Captured) -> None:
        """Leave the chunk in CPU memory, unless it would take more than this save's share from others."""
        self._kept += one.buffer.nbytes
        if self._kept > self._budget and self._parts.cpu.free_bytes() < one.buffer.nbytes:
            self._parts.cpu.release(one.buffer)
            return
        chunk_id = self._parts.shape.id(one.chunk)
        self._parts.cpu.publish(chunk_id, one.buffer, asked_for=self._job.asked_for)
        self._parts.cpu.unpin(chunk_id)
        self._parts.outbox.entered_memory([chunk_id])

    def _give_up_the_rest(self) -> None:
        """Release what is still held, when neither the device nor a tier uses it any more."""
        for taken, copied in self._under_way:
            copied.synchronize()
            for one in taken:
                self._parts.cpu.release(one.buffer)
        for one in self._captured:
            self._parts.cpu.release(one.buffer)
        for written in self._written:
            if not any(is_buffer_in_use(problem) for problem in written.problems()):
                self._parts.cpu.release(written.one.buffer)

    def _report(self, phase: Phase, outcomes: tuple[ChunkOutcome, ...] = (), seconds: float = 0.0) -> None:
        done = len(self._outcomes)
        more: dict[str, Any] = {
            "done": done,
            "captured": self._chunks_read,
            "outcomes": outcomes,
            "seconds": seconds,
        }
        self._parts.outbox.report(Report(self._job.id, self._parts.rank, phase, **more))

"""Loads: verified chunks -> the blocks of a waiting request.

A load's own transfer thread. It hands whole batches to the bus and keeps a few under way, while the checks of the next
ones run ahead. Chunks stay pinned in CPU memory until the copies that read them are over.

vLLM takes two or three steps to run a request whose load is over. So it is told as soon as every chunk has passed its
check and the bus has the last batch. The model's work waits for that batch on the device.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Final

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import TierName
from cwm_connector.step.jobs import ChunkBlocks, ChunkOutcome, LoadJob, Phase, Report
from cwm_connector.worker.chunk_reader import ChunkReader, ChunkShape, Purpose, VerifiedChunk
from cwm_connector.worker.fence import Fence
from cwm_connector.worker.outbox import Outbox
from cwm_connector.worker.paged_copy import PagedCopier, PagePart

logger = logging.getLogger(__name__)

BATCHES_UNDER_WAY: Final = 2
"""Batches that the bus has, so that it goes on while the next one is prepared."""


class Loader:
    """One for each rank. Threads may load different requests at the same time."""

    def __init__(self, rank: int, copier: PagedCopier, reader: ChunkReader, shape: ChunkShape, outbox: Outbox) -> None:
        self._rank = rank
        self._copier = copier
        self._reader = reader
        self._shape = shape
        self._outbox = outbox

    def load(self, job: LoadJob, after: Fence) -> None:
        """Fill a request's blocks. The end is always reported: the request waits for that, and for nothing else.

        `after` is behind all earlier work of the model on the blocks.
        """
        started = time.perf_counter()
        filling = _Filling(self._copier, self._reader, self._shape, job, after)
        failure: tuple[Code, str] | None = None
        try:
            filling.run(partial(self._outbox.all_queued, job.request_id))
        except CWMError as problem:
            failure = (problem.code, problem.message)
        except Exception as problem:
            logger.exception("a load failed")
            failure = (Code.INTERNAL, unexpected(problem))
        from_below = [each.chunk for each in filling.filled if each.tier is not TierName.CPU]
        self._outbox.entered_memory(self._shape.id(chunk) for chunk in from_below)
        outcomes = [self._shape.outcome(each.chunk, each.tier) for each in filling.filled]
        self._end(job, outcomes, failure, time.perf_counter() - started, is_known=filling.is_announced)

    def fail(self, job: LoadJob, failure: tuple[Code, str]) -> None:
        """End a load that could not begin. vLLM computes all of its blocks."""
        self._end(job, [], failure, 0.0)

    def _end(
        self,
        job: LoadJob,
        good: list[ChunkOutcome],
        failure: tuple[Code, str] | None,
        seconds: float,
        *,
        is_known: bool = False,
    ) -> None:
        """Report the end. `is_known`: vLLM may run the request already."""
        outcomes = list(good)
        if failure is not None and len(good) < len(job.chunks):
            outcomes.append(failed(job.chunks[len(good)].chunk, failure))
        report = Report(job.id, self._rank, Phase.FINISHED, done=len(good), outcomes=tuple(outcomes), seconds=seconds)
        if is_known:
            self._outbox.report(report)
            return
        # vLLM trusts every block before the first bad one and none after it.
        bad = {block for part in job.chunks[len(good) :] for block in part.block_ids}
        self._outbox.loaded(job.request_id, bad, report, failed=len(good) < len(job.chunks))


class _Filling:
    """One load under way."""

    def __init__(self, copier: PagedCopier, reader: ChunkReader, shape: ChunkShape, job: LoadJob, after: Fence) -> None:
        self.filled: list[VerifiedChunk] = []
        """In order. Their copies are over; the chunks may be evicted."""
        self.is_announced = False
        """The last copies were announced while they were under way."""
        self._copier = copier
        self._reader = reader
        self._shape = shape
        self._after = after
        self._parts = deque(job.chunks)
        self._under_way: deque[tuple[list[VerifiedChunk], Fence]] = deque()

    def run(self, announce: Callable[[Fence], None]) -> None:
        """Fill the blocks of one chunk after the other. Return, or raise, when no copy is under way any more.

        `announce` is told of the last copies, if they are still under way when nothing else is left to do.
        """
        chunks = [part.chunk for part in self._parts]
        try:
            with closing(self._reader.read(chunks, Purpose.LOAD, self._settle_one)) as batches:
                for batch in batches:
                    self._start(batch)
                    while len(self._under_way) > BATCHES_UNDER_WAY:
                        self._settle_one()
            while len(self._under_way) > 1:
                self._settle_one()
            self._announce(announce)
        finally:
            while self._settle_one():
                pass

    def _announce(self, announce: Callable[[Fence], None]) -> None:
        for _, last_copies in self._under_way:
            if not last_copies.query():
                announce(last_copies)
                self.is_announced = True

    def _start(self, batch: list[VerifiedChunk]) -> None:
        try:
            moves = [self._part(self._parts.popleft(), verified) for verified in batch]
            self._under_way.append((batch, self._copier.scatter(moves, self._after)))
        except BaseException:
            self._reader.release(batch)
            raise

    def _part(self, part: ChunkBlocks, verified: VerifiedChunk) -> PagePart:
        payload = self._shape.payload_of(part.chunk, verified.buffer)
        return PagePart(payload, part.chunk.page_count, part.first, part.block_ids, part.chunk.group)

    def _settle_one(self) -> bool:
        """Wait for the oldest batch and let go of its chunks. Return False if there is none.

        If the device can't tell whether the copies are over, the chunks stay pinned: it may still read them.
        """
        if not self._under_way:
            return False
        batch, copied = self._under_way[0]
        copied.synchronize()
        self._under_way.popleft()
        self._reader.release(batch)
        self.filled += batch
        return True


def failed(chunk: ChunkSpec, failure: tuple[Code, str]) -> ChunkOutcome:
    """Return the outcome of a chunk that could not be read."""
    return ChunkOutcome(chunk.key, None, 0, failure)


def unexpected(problem: BaseException) -> str:
    """Return what a report says about an exception that nobody foresaw."""
    return f"unexpected {type(problem).__name__}; the engine's log has the details"

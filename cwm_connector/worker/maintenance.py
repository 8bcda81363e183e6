"""Copies, verifies and removes chunks that are stored already.

Transfer threads, one at a time for each method; may block on the tiers. Chunks are handled as sealed bytes: only key,
rank and checksum are looked at, so another model's chunks in the same tiers are handled as well. A worker handles its
own rank's part of a chunk. If more ranks than there are now froze the chunk, it also handles every part `world_size`
further on.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Claim, TierName
from cwm_connector.step.jobs import ChunkOutcome, CopyJob, DropJob, VerifyJob
from cwm_connector.tiers.base import ChunkId, DurableTier
from cwm_connector.tiers.chunk import ALIGNMENT, HEADER_BYTES, check_intact
from cwm_connector.tiers.cpu import CpuTier, HostBuffer
from cwm_connector.tiers.stack import TierStack
from cwm_connector.worker.chunk_reader import is_buffer_in_use, release_after

logger = logging.getLogger(__name__)


class Maintenance:
    """One for each rank."""

    def __init__(self, rank: int, world_size: int, cpu: CpuTier, stack: TierStack) -> None:
        self._rank = rank
        self._world_size = world_size
        self._cpu = cpu
        self._durable_tiers = stack.durable_tiers

    def copy(self, job: CopyJob) -> list[ChunkOutcome]:
        """Copy chunks to the job's target, sync it, and read the copies back.

        Return one outcome for each chunk. Its `tier` is the target if all copies there are durable and good.
        """
        target = self._durable_tiers[job.target]
        outcomes, written = [], list[ChunkId]()
        for key, claim in job.chunks:
            try:
                parts = [self._put(part, target, claim, written) for part in self._parts(key)]
                outcomes.append(ChunkOutcome(key, job.target, sum(parts)))
            except CWMError as problem:
                outcomes.append(_failed(key, problem))
                if problem.code is Code.BACKEND:  # each of the others would wait for its time-out as well
                    outcomes += [_failed(other.key, problem) for other in job.chunks[len(outcomes) :]]
                    break
        if any(each.tier for each in outcomes):
            target.sync()  # also for copies that were there: their writer may have died, or failed, before its sync
        for part in written:
            try:
                self._check(part, target)
            except CWMError as problem:
                outcomes = [_failed(part.key, problem) if each.key == part.key else each for each in outcomes]
        return outcomes

    def verify(self, job: VerifyJob) -> list[ChunkOutcome]:
        """Read and check every copy in the job's tier. Return one outcome for each chunk: its size, or its failure."""
        verify_one = functools.partial(self._verify, job.tier)
        if job.together:
            with ThreadPoolExecutor(len(job.keys), thread_name_prefix="cwm-verify") as threads:
                return list(threads.map(verify_one, job.keys))
        outcomes: list[ChunkOutcome] = []
        for key in job.keys:
            outcomes.append(verify_one(key))
            failure = outcomes[-1].failure
            if failure is not None and failure[0] is Code.BACKEND:
                outcomes += [ChunkOutcome(other, None, 0, failure) for other in job.keys[len(outcomes) :]]
                break
        return outcomes

    def drop(self, job: DropJob) -> tuple[list[ChunkOutcome], list[ChunkId]]:
        """Remove chunks from the job's tiers.

        Return one outcome for each chunk and tier that freed bytes, and the parts that left CPU memory.
        """
        outcomes, left_memory = [], []
        tiers = [self._durable_tiers[name] for name in job.tiers if name in self._durable_tiers]
        for key, claim in job.chunks:
            if TierName.CPU in job.tiers and self._cpu.drop(ChunkId(key, self._rank)):
                left_memory.append(ChunkId(key, self._rank))
            for tier in list(tiers):
                try:
                    freed = sum(_delete(tier, part, claim) for part in self._parts(key, (tier,)))
                except CWMError as problem:  # nobody refers to them any more: a collection removes them later
                    logger.warning("chunks could not be removed from the %s tier: %s", tier.name.value, problem)
                    tiers.remove(tier)
                    continue
                if freed:
                    outcomes.append(ChunkOutcome(key, tier.name, freed))
        return outcomes, left_memory

    # --- parts --------------------------------------------------------------------------------------------------------

    def _parts(self, key: ChunkKey, durable_tiers: Sequence[DurableTier] | None = None) -> Iterator[ChunkId]:
        """Yield this worker's parts: always its own rank's, then those further on that a tier has."""
        searched = self._durable_tiers.values() if durable_tiers is None else durable_tiers
        for rank in itertools.count(self._rank, self._world_size):
            part = ChunkId(key, rank)
            if rank != self._rank and all(tier.size_of(part) is None for tier in searched):
                return
            yield part

    def _put(self, part: ChunkId, target: DurableTier, claim: Claim, written: list[ChunkId]) -> int:
        """Make sure that `target` has a good copy of the part, and return its size in bytes."""
        try:
            return self._check(part, target)
        except CWMError as problem:
            if problem.code not in (Code.CHUNK_MISSING, Code.CORRUPT):
                raise
        buffer, release = self._good_copy(part, target.name)
        write = target.write(part, buffer.view, claim)
        failure = write.exception()
        if not is_buffer_in_use(failure):
            release()
        if failure is not None:
            raise failure
        written.append(part)
        return buffer.nbytes

    def _good_copy(self, part: ChunkId, target: TierName) -> tuple[HostBuffer, Callable[[], None]]:
        """Return intact bytes of the part from any tier but the target, and a function that releases the buffer.

        Raises: the last tier's failure.
        """
        problem = CWMError(Code.CHUNK_MISSING, "a chunk is in no tier any more; freeze its session again to replace it")
        if (resident := self._in_memory(part)) is not None:
            return resident, lambda: self._cpu.unpin(part)
        for tier in self._durable_tiers.values():
            if tier.name is target:
                continue
            try:
                buffer = self._read(part, tier)
            except CWMError as failure:
                problem = failure
            else:
                return buffer, functools.partial(self._cpu.release, buffer)
        raise problem

    def _in_memory(self, part: ChunkId) -> HostBuffer | None:
        """Return the part in CPU memory, pinned and intact. Drop a copy that is not intact."""
        buffer = self._cpu.pin(part, counts=False)
        if buffer is None:
            return None
        try:
            check_intact(buffer.view, part.key, part.kv_rank)
        except CWMError:
            self._cpu.drop(part)
            self._cpu.unpin(part)
            return None
        return buffer

    def _read(self, part: ChunkId, tier: DurableTier) -> HostBuffer:
        """Return a reserved buffer with the tier's intact bytes.

        Raises: `Code.CHUNK_MISSING`, `Code.CORRUPT`, `Code.READ_FAILED`, `Code.BACKEND`, `Code.MEMORY`.
        """
        size = tier.size_of(part)
        if size is None:
            raise CWMError(
                Code.CHUNK_MISSING,
                f"a chunk is not in the {tier.name.value} tier; freeze its session again to replace it",
            )
        if size < HEADER_BYTES or size % ALIGNMENT:
            raise CWMError(
                Code.CORRUPT,
                f"a chunk in the {tier.name.value} tier has an impossible length ({size} bytes); freeze its session "
                "again to replace it",
            )
        buffer = self._cpu.reserve(size)
        read = tier.read(part, buffer.view)
        try:
            read.result()
            check_intact(buffer.view, part.key, part.kv_rank)
        except BaseException:
            release_after(self._cpu, buffer, read)
            raise
        return buffer

    def _check(self, part: ChunkId, tier: DurableTier) -> int:
        """Return the size in bytes of the tier's copy, which is good. Raises as `_read`."""
        buffer = self._read(part, tier)
        self._cpu.release(buffer)
        return buffer.nbytes

    def _verify(self, tier_name: TierName, key: ChunkKey) -> ChunkOutcome:
        """Check all of this worker's parts of the chunk in one tier."""
        try:
            if tier_name is TierName.CPU:
                return self._verify_in_memory(key)
            tier = self._durable_tiers[tier_name]
            return ChunkOutcome(key, tier_name, sum(self._check(part, tier) for part in self._parts(key, (tier,))))
        except CWMError as problem:
            return _failed(key, problem)

    def _verify_in_memory(self, key: ChunkKey) -> ChunkOutcome:
        """Check this rank's own part, the only one that can be there. Drop a bad one: a durable tier has the chunk."""
        part = ChunkId(key, self._rank)
        if not self._cpu.contains(part):
            return ChunkOutcome(key, None, 0)
        buffer = self._in_memory(part)
        if buffer is None:
            raise CWMError(Code.CORRUPT, "a chunk in CPU memory had changed; it was dropped")
        self._cpu.unpin(part)
        return ChunkOutcome(key, TierName.CPU, buffer.nbytes)


def _delete(tier: DurableTier, part: ChunkId, claim: Claim) -> int:
    """Delete the part and return the number of freed bytes."""
    size = tier.size_of(part) or 0
    return size if tier.delete(part, claim) else 0


def _failed(key: ChunkKey, problem: CWMError) -> ChunkOutcome:
    return ChunkOutcome(key, None, 0, (problem.code, problem.message))

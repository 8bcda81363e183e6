"""A worker's care for what is stored already: copies between tiers, scrubbing, removal.

One transfer thread of the worker at a time per method. Chunks are taken as sealed bytes: key, rank and checksum are all
that is looked at, so that another model's chunks in the same store are cared for as well. A worker cares for its own
rank's part of a chunk and, where a chunk was frozen by more ranks than there are now, for every part that many further.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.types import ChunkKey, Claim, TierName
from cwm_connector.step.jobs import ChunkOutcome, CopyJob, DropJob, VerifyJob
from cwm_connector.tiers.base import ChunkId, DurableTier
from cwm_connector.tiers.chunk import ALIGNMENT, HEADER_BYTES, check_intact
from cwm_connector.tiers.cpu import CpuTier, HostBuffer
from cwm_connector.tiers.stack import TierStack
from cwm_connector.worker.chunk_reader import give_back, in_use

logger = logging.getLogger(__name__)


class Maintenance:
    """One rank's."""

    def __init__(self, rank: int, world_size: int, cpu: CpuTier, stack: TierStack) -> None:
        self._rank = rank
        self._world_size = world_size
        self._cpu = cpu
        self._durable_tiers = stack.durable_tiers

    def copy(self, job: CopyJob) -> list[ChunkOutcome]:
        """One outcome a chunk: `tier` is the target once its copies there are durable, read back and found good."""
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
            target.sync()  # also for what was there: whoever wrote it may have died, or failed, before its sync
        for part in written:
            try:
                self._check(part, target)
            except CWMError as problem:
                outcomes = [_failed(part.key, problem) if each.key == part.key else each for each in outcomes]
        return outcomes

    def verify(self, job: VerifyJob) -> list[ChunkOutcome]:
        """One outcome a chunk: `size_bytes` of what is good, or why it is not."""
        outcomes = []
        for key in job.keys:
            try:
                if job.tier is TierName.CPU:
                    outcomes.append(self._verify_in_memory(key))
                else:
                    store = self._durable_tiers[job.tier]
                    sizes = [self._check(part, store) for part in self._parts(key, (store,))]
                    outcomes.append(ChunkOutcome(key, job.tier, sum(sizes)))
            except CWMError as problem:
                outcomes.append(_failed(key, problem))
                if problem.code is Code.BACKEND:
                    outcomes += [_failed(other, problem) for other in job.keys[len(outcomes) :]]
                    break
        return outcomes

    def drop(self, job: DropJob) -> tuple[list[ChunkOutcome], list[ChunkId]]:
        """One outcome for each chunk and tier that gave bytes back, and what left CPU memory."""
        outcomes, left_memory = [], []
        stores = [self._durable_tiers[name] for name in job.tiers if name in self._durable_tiers]
        for key, claim in job.chunks:
            if TierName.CPU in job.tiers and self._cpu.drop(ChunkId(key, self._rank)):
                left_memory.append(ChunkId(key, self._rank))
            for store in list(stores):
                try:
                    freed = sum(_delete(store, part, claim) for part in self._parts(key, (store,)))
                except CWMError as problem:  # nobody refers to them any more: a collection removes them later
                    logger.warning("chunks could not be removed from the %s tier: %s", store.name.value, problem)
                    stores.remove(store)
                    continue
                if freed:
                    outcomes.append(ChunkOutcome(key, store.name, freed))
        return outcomes, left_memory

    # --- parts --------------------------------------------------------------------------------------------------------

    def _parts(self, key: ChunkKey, durable_tiers: Sequence[DurableTier] | None = None) -> Iterator[ChunkId]:
        """This worker's parts: always its own rank's, then those further on that a store has."""
        searched = self._durable_tiers.values() if durable_tiers is None else durable_tiers
        for rank in itertools.count(self._rank, self._world_size):
            part = ChunkId(key, rank)
            if rank != self._rank and all(store.size_of(part) is None for store in searched):
                return
            yield part

    def _put(self, part: ChunkId, target: DurableTier, claim: Claim, written: list[ChunkId]) -> int:
        """Makes sure that `target` has a good copy of the part; returns its size in bytes."""
        try:
            return self._check(part, target)
        except CWMError as problem:
            if problem.code not in (Code.CHUNK_MISSING, Code.CORRUPT):
                raise
        buffer, let_go = self._good_copy(part, target.name)
        write = target.write(part, buffer.view, claim)
        failure = write.exception()
        if not in_use(failure):
            let_go()
        if failure is not None:
            raise failure
        written.append(part)
        return buffer.nbytes

    def _good_copy(self, part: ChunkId, target: TierName) -> tuple[HostBuffer, Callable[[], None]]:
        """Intact bytes of the part from any tier but the target, and what gives the buffer back.

        Raises: what the last tier said.
        """
        problem = CWMError(Code.CHUNK_MISSING, "a chunk is in no tier any more; freeze its session anew to replace it")
        if (resident := self._in_memory(part)) is not None:
            return resident, lambda: self._cpu.unpin(part)
        for store in self._durable_tiers.values():
            if store.name is target:
                continue
            try:
                buffer = self._read(part, store)
            except CWMError as failure:
                problem = failure
            else:
                return buffer, functools.partial(self._cpu.release, buffer)
        raise problem

    def _in_memory(self, part: ChunkId) -> HostBuffer | None:
        """The part in CPU memory, pinned and intact; a copy that is not is dropped."""
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

    def _read(self, part: ChunkId, store: DurableTier) -> HostBuffer:
        """A reserved buffer with the store's intact bytes. Raises: CWM-2003, 4004, 4002, 5002, 7001."""
        size = store.size_of(part)
        if size is None:
            raise CWMError(Code.CHUNK_MISSING, f"a chunk is not in the {store.name.value} tier")
        if size < HEADER_BYTES or size % ALIGNMENT:
            raise CWMError(Code.CORRUPT, f"a chunk in the {store.name.value} tier is {size} bytes long, which none is")
        buffer = self._cpu.reserve(size)
        reading = store.read(part, buffer.view)
        try:
            reading.result()
            check_intact(buffer.view, part.key, part.kv_rank)
        except BaseException:
            give_back(self._cpu, buffer, reading)
            raise
        return buffer

    def _check(self, part: ChunkId, store: DurableTier) -> int:
        """The size in bytes of the store's copy, which is good. Raises as `_read`."""
        buffer = self._read(part, store)
        self._cpu.release(buffer)
        return buffer.nbytes

    def _verify_in_memory(self, key: ChunkKey) -> ChunkOutcome:
        """Only this rank's own part can be there; one that is bad is dropped, for a durable tier has the chunk."""
        part = ChunkId(key, self._rank)
        if not self._cpu.contains(part):
            return ChunkOutcome(key, None, 0)
        buffer = self._in_memory(part)
        if buffer is None:
            raise CWMError(Code.CORRUPT, "a chunk in CPU memory had changed; it was dropped")
        self._cpu.unpin(part)
        return ChunkOutcome(key, TierName.CPU, buffer.nbytes)


def _delete(store: DurableTier, part: ChunkId, claim: Claim) -> int:
    """Bytes that are free now."""
    size = store.size_of(part) or 0
    return size if store.delete(part, claim) else 0


def _failed(key: ChunkKey, problem: CWMError) -> ChunkOutcome:
    return ChunkOutcome(key, None, 0, (problem.code, problem.message))

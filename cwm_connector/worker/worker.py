"""The worker side: carries out the scheduler side's jobs on its own threads, and reports the results.

vLLM's hooks run on the model's thread. They only hand jobs over and collect results, and never block. Copies, checksums
and I/O run on transfer threads, which may block. There is one each for saves, for loads, for jobs that a thaw or a
delete waits for, and for maintenance. Loads and thaws whose chunks are all in CPU memory have threads of their own, so
that they never wait behind a disk or a server. So a long job delays no job that somebody waits for.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import torch

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import TierName
from cwm_connector.step.jobs import (
    CanaryJob,
    ChunkOutcome,
    CopyJob,
    DropJob,
    FailedLoad,
    Job,
    LoadJob,
    Phase,
    PromoteJob,
    Report,
    RollCall,
    SaveJob,
    StepReports,
    VerifyJob,
    Work,
)
from cwm_connector.tiers.base import DurableTier
from cwm_connector.tiers.cpu import CpuTier
from cwm_connector.tiers.stack import TierStack
from cwm_connector.worker.canary import PageNumbers, canary_of
from cwm_connector.worker.checksums import Checksums
from cwm_connector.worker.chunk_reader import ChunkReader, ChunkShape, Purpose, VerifiedChunk
from cwm_connector.worker.fence import PASSED, Fence
from cwm_connector.worker.loads import Loader, failed, unexpected
from cwm_connector.worker.maintenance import Maintenance
from cwm_connector.worker.outbox import Outbox
from cwm_connector.worker.paged_copy import PagedCopier
from cwm_connector.worker.saves import Save, SaveParts

logger = logging.getLogger(__name__)


def _one_thread(name: str) -> ThreadPoolExecutor:
    # More than one thread inside a copy makes it slower as soon as the model computes beside it.
    return ThreadPoolExecutor(1, thread_name_prefix=f"cwm-{name}", initializer=torch.set_num_threads, initargs=(1,))


class WorkerSide:
    """One for each rank. The model's thread calls `submit` and `take_*`, which never block."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        copier: PagedCopier,
        block_tokens: int,
        cpu: CpuTier,
        durable_tiers: Sequence[DurableTier],
        numbers: Sequence[PageNumbers] = (),
    ) -> None:
        """Start no thread yet. `durable_tiers` are fastest first. They and `cpu` are closed with the worker side.

        `numbers`: those in the pages of each KV cache group, for the canary. See `canary_of`.
        """
        self._numbers = numbers
        self._rank = rank
        self._copier = copier
        self._cpu = cpu
        self._outbox = Outbox()
        self._checksums = Checksums(copier.check_threads)
        self._stack = TierStack(durable_tiers, self._outbox.saw_bad_copy)
        self._shape = ChunkShape(rank, copier.layout, block_tokens, copier.group_bytes)
        self._chunk_reader = ChunkReader(cpu, self._stack, self._shape, self._checksums)
        self._loader = Loader(rank, copier, self._chunk_reader, self._shape, self._outbox)
        self._save_parts = SaveParts(rank, copier, cpu, self._stack, self._shape, self._checksums, self._outbox)
        self._maintenance = Maintenance(rank, world_size, cpu, self._stack)
        self._memory_load_thread, self._memory_promote_thread = (
            _one_thread("memory-load"),
            _one_thread("memory-promote"),
        )
        self._save_thread, self._load_thread = _one_thread("save"), _one_thread("load")
        self._promote_thread, self._maintenance_thread = _one_thread("promote"), _one_thread("maintenance")

    # --- the model's thread ---

    def submit(self, jobs: Iterable[Job]) -> None:
        """Hand the step's jobs over. The step's forward is complete, or on the current stream.

        A job that can't be handed over ends as failed, so that nobody waits for it.
        """
        fence: Fence | None = None
        for job in jobs:
            if isinstance(job, RollCall):
                self._answer(job)
                continue
            self._outbox.began(job.id)
            try:
                if fence is None and isinstance(job, SaveJob | LoadJob | CanaryJob):
                    fence = self._copier.fence()
                self._submit(job, fence or PASSED)
            except Exception as problem:
                logger.exception("job %d could not begin", job.id)
                self._fail(job, (Code.INTERNAL, unexpected(problem)))

    def take_loaded(self) -> set[str]:
        """Return the requests that vLLM may run again since the last call, after a load or a failed one.

        The last copies of a load may be under way. What the model queues from now on waits for them on the device.
        """
        return self.take_loads()[0]

    def take_loads(self) -> tuple[set[str], set[str]]:
        """Return the same, and which of these requests could not be given all that they wait for."""
        loads = self._outbox.take_loads()
        for last_copies in loads.last_copies:
            self._copier.hold_model(last_copies)
        return loads.loaded, loads.failed

    def take_bad_blocks(self) -> set[int]:
        """Return the blocks whose load has failed since the last call."""
        return self._outbox.take_bad_blocks()

    def take_reports(self) -> StepReports | None:
        """Return the news for the scheduler side; None if there is none."""
        return self._outbox.take_reports(self._cpu.take_evicted())

    def close(self) -> None:
        """End the threads after the jobs that they have begun, and give the memory back."""
        memory_threads = (self._memory_load_thread, self._memory_promote_thread)
        tier_threads = (self._save_thread, self._load_thread, self._promote_thread, self._maintenance_thread)
        for executor in (*memory_threads, *tier_threads):
            executor.shutdown(wait=True, cancel_futures=True)
        self._stack.close()
        self._checksums.close()
        self._cpu.close()

    def _answer(self, roll_call: RollCall) -> None:
        """Report the jobs that got lost on their way here or inside as failed."""
        lost = (
            Code.INTERNAL,
            "the job got lost on its way to the workers; see the engine's log, and try again",
        )
        for job in roll_call.jobs:
            if self._outbox.has_ended(job.id):
                self._report(job, Phase.FINISHED, failure=lost)  # its request goes on already
            elif not self._outbox.is_under_way(job.id):
                self._fail(job, lost)

    def _submit(self, job: Work, fence: Fence) -> None:
        if isinstance(job, FailedLoad):
            self._fail(job, (Code.INTERNAL, "the load could not be planned; see the engine's log"))
        elif isinstance(job, SaveJob):
            self._save_thread.submit(self._guarded, job, Save(self._save_parts, job, fence).run)
        elif isinstance(job, LoadJob):
            work = partial(self._loader.load, job, fence)
            chunks = [part.chunk for part in job.chunks]
            self._memory_load_thread.submit(self._route, job, chunks, work, self._load_thread)
        elif isinstance(job, PromoteJob):
            work = partial(self._guarded, job, partial(self._promote, job))
            self._memory_promote_thread.submit(self._route, job, job.chunks, work, self._promote_thread)
        elif isinstance(job, CanaryJob):
            self._promote_thread.submit(self._guarded, job, partial(self._take_canary, job, fence))
        elif isinstance(job, DropJob):
            self._promote_thread.submit(self._guarded, job, partial(self._drop, job))
        else:
            self._maintenance_thread.submit(self._guarded, job, partial(self._maintain, job))

    # --- transfer threads ---

    def _route(
        self, job: Work, chunks: Sequence[ChunkSpec], work: Callable[[], None], from_tiers: ThreadPoolExecutor
    ) -> None:
        """Do the work here if all chunks are in memory, else on the thread that may wait for the tiers.

        They are pinned meanwhile. If one were evicted, this thread would wait for a tier after all.
        """
        try:
            if not self._chunk_reader.pin_all(chunks):
                from_tiers.submit(work)
                return
        except Exception as problem:  # or the worker side is being closed
            self._fail(job, (Code.INTERNAL, unexpected(problem)))
            return
        try:
            work()
        finally:
            self._chunk_reader.unpin_all(chunks)

    def _report(
        self,
        job: Work,
        phase: Phase,
        done: int = 0,
        outcomes: Sequence[ChunkOutcome] = (),
        seconds: float = 0.0,
        failure: tuple[Code, str] | None = None,
    ) -> None:
        self._outbox.report(Report(job.id, self._rank, phase, done, tuple(outcomes), failure, seconds))

    def _guarded(self, job: Work, work: Callable[[], None]) -> None:
        """Run a job. A failure ends that job and nothing else."""
        try:
            work()
        except CWMError as problem:
            self._fail(job, (problem.code, problem.message))
        except Exception as problem:
            logger.exception("job %d failed", job.id)
            self._fail(job, (Code.INTERNAL, unexpected(problem)))

    def _fail(self, job: Work, failure: tuple[Code, str]) -> None:
        if isinstance(job, LoadJob):
            self._loader.fail(job, failure)
        elif isinstance(job, FailedLoad):
            report = Report(job.id, self._rank, Phase.FINISHED, failure=failure)
            self._outbox.loaded(job.request_id, job.block_ids, report, failed=True)
        else:
            self._report(job, Phase.FINISHED, failure=failure)

    def _promote(self, job: PromoteJob) -> None:
        started = time.perf_counter()
        outcomes, pinned = self._promote_prefix(job)
        self._chunk_reader.release(pinned)
        self._report(job, Phase.FINISHED, len(outcomes), outcomes, time.perf_counter() - started)

    def _promote_prefix(self, job: PromoteJob) -> tuple[list[ChunkOutcome], list[VerifiedChunk]]:
        """Read as far as memory goes. Chunks stay pinned, so that the end of a window does not evict its beginning."""
        outcomes: list[ChunkOutcome] = []
        pinned: list[VerifiedChunk] = []
        while remaining := job.chunks[len(outcomes) :]:
            try:
                with closing(self._chunk_reader.read(remaining, Purpose.PROMOTE, lambda: False)) as batches:
                    for batch in batches:
                        pinned += batch
                        outcomes += [self._promoted(verified) for verified in batch]
                        self._report(job, Phase.RUNNING, len(outcomes))
            except CWMError as problem:
                if problem.code is Code.MEMORY:
                    outcomes += [self._unread(chunk) for chunk in job.chunks[len(outcomes) :]]
                else:
                    outcomes.append(failed(job.chunks[len(outcomes)], (problem.code, problem.message)))
        return outcomes, pinned

    def _promoted(self, verified: VerifiedChunk) -> ChunkOutcome:
        if verified.tier is not TierName.CPU:
            self._outbox.entered_memory([self._shape.id(verified.chunk)])
        return self._shape.outcome(verified.chunk, verified.tier)

    def _unread(self, chunk: ChunkSpec) -> ChunkOutcome:
        """Return the tier of a chunk that does not fit into memory. The chunk is verified when it is loaded."""
        size = self._shape.sealed_bytes(chunk)
        for tier in self._stack.durable_tiers.values():
            if tier.size_of(self._shape.id(chunk)) == size:
                return ChunkOutcome(chunk.key, tier.name, size)
        return failed(chunk, (Code.CHUNK_MISSING, "no tier has it whole; freeze its session again to replace it"))

    def _take_canary(self, job: CanaryJob, fence: Fence) -> None:
        canary = canary_of(self._copier, job.groups, fence, self._numbers)
        self._outbox.report(Report(job.id, self._rank, Phase.FINISHED, canary=canary))

    def _drop(self, job: DropJob) -> None:
        outcomes, left_memory = self._maintenance.drop(job)
        self._outbox.left_memory(left_memory)
        self._report(job, Phase.FINISHED, len(job.chunks), outcomes)

    def _maintain(self, job: CopyJob | VerifyJob) -> None:
        started = time.perf_counter()
        outcomes = self._maintenance.copy(job) if isinstance(job, CopyJob) else self._maintenance.verify(job)
        self._report(job, Phase.FINISHED, len(outcomes), outcomes, time.perf_counter() - started)

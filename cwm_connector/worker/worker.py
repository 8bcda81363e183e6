"""The worker side: carries out the scheduler side's jobs on its own threads, and reports the results.

vLLM's hooks run on the model's thread. They only hand jobs over and collect results, and never block. Copies, checksums
and I/O run on transfer threads, which may block: one each for saves, for loads, for jobs that a thaw or a delete waits
for, and for maintenance. So a long job delays no job that somebody waits for.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.identity import ChunkSpec
from cwm_connector.core.types import ChunkKey, TierName
from cwm_connector.step.jobs import (
    ChunkBlocks,
    ChunkOutcome,
    CopyJob,
    DropJob,
    Job,
    JobId,
    LoadJob,
    Phase,
    PromoteJob,
    Report,
    SaveJob,
    StepReports,
    VerifyJob,
)
from cwm_connector.tiers.base import ChunkId, DurableTier
from cwm_connector.tiers.chunk import HEADER_BYTES, seal
from cwm_connector.tiers.cpu import CpuTier, HostBuffer
from cwm_connector.tiers.stack import TierStack
from cwm_connector.worker.chunk_reader import ChunkReader, ChunkShape, is_buffer_in_use
from cwm_connector.worker.maintenance import Maintenance
from cwm_connector.worker.paged_copy import Fence, PagedCopier, payload_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _UnwrittenChunk:
    """A chunk that was copied out of the paged cache and is not yet written to the tiers."""

    chunk: ChunkSpec
    buffer: HostBuffer


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
    ) -> None:
        """Start no thread yet. `durable_tiers` are fastest first. They and `cpu` are closed with the worker side."""
        self._rank = rank
        self._copier = copier
        self._cpu = cpu
        self._stack = TierStack(durable_tiers, self._note_bad_copy)
        self._shape = ChunkShape(rank, copier.layout, block_tokens, payload_bytes(copier, 1))
        self._chunk_reader = ChunkReader(cpu, self._stack, self._shape)
        self._maintenance = Maintenance(rank, world_size, cpu, self._stack)
        self._save_thread, self._load_thread = _one_thread("save"), _one_thread("load")
        self._promote_thread, self._maintenance_thread = _one_thread("promote"), _one_thread("maintenance")
        self._lock = threading.Lock()
        self._reports: list[Report] = []
        self._entered_cpu: list[ChunkId] = []
        self._left_cpu: list[ChunkId] = []
        self._bad_copies: set[tuple[ChunkKey, TierName]] = set()
        self._loaded_requests: set[str] = set()
        self._bad_blocks: set[int] = set()

    # --- the model's thread ---

    def submit(self, jobs: Iterable[Job]) -> None:
        """Hand the step's jobs over. The step's forward is complete, or on the current stream."""
        for job in jobs:
            if isinstance(job, SaveJob):
                self._save_thread.submit(self._guarded, job.id, self._save, job, self._copier.fence())
            elif isinstance(job, LoadJob):
                self._load_thread.submit(self._load, job)
            elif isinstance(job, PromoteJob):
                self._promote_thread.submit(self._guarded, job.id, self._promote, job)
            elif isinstance(job, DropJob):
                self._promote_thread.submit(self._guarded, job.id, self._drop, job)
            else:
                self._maintenance_thread.submit(self._guarded, job.id, self._maintain, job)

    def take_loaded(self) -> set[str]:
        """Return the requests whose load has ended since the last call, in success or failure."""
        with self._lock:
            loaded, self._loaded_requests = self._loaded_requests, set()
        return loaded

    def take_bad_blocks(self) -> set[int]:
        """Return the blocks whose load has failed since the last call."""
        with self._lock:
            bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def take_reports(self) -> StepReports | None:
        """Return the news for the scheduler side; None if there is none."""
        evicted = self._cpu.take_evicted()
        with self._lock:
            reports, self._reports = self._reports, []
            entered, self._entered_cpu = self._entered_cpu, []
            left, self._left_cpu = self._left_cpu, []
            bad, self._bad_copies = self._bad_copies, set()
        if not (reports or entered or left or evicted or bad):
            return None
        return StepReports(reports, entered, left + evicted, list(bad))

    def close(self) -> None:
        """End the threads after the jobs that they have begun, and give the memory back."""
        for executor in (self._save_thread, self._load_thread, self._promote_thread, self._maintenance_thread):
            executor.shutdown(wait=True, cancel_futures=True)
        self._stack.close()
        self._cpu.close()

    # --- transfer threads ---

    def _note_bad_copy(self, key: ChunkKey, tier: TierName) -> None:
        with self._lock:
            self._bad_copies.add((key, tier))

    def _report(self, job: JobId, phase: Phase, **more: object) -> None:
        with self._lock:
            self._reports.append(Report(job, self._rank, phase, **more))  # type: ignore[arg-type]

    def _guarded(self, job: JobId, work: Callable[..., None], *arguments: object) -> None:
        """Run a job. A failure ends that job and nothing else."""
        try:
            work(*arguments)
        except CWMError as problem:
            self._report(job, Phase.FINISHED, failure=(problem.code, problem.message))
        except Exception as problem:
            logger.exception("job %d failed", job)
            self._report(job, Phase.FINISHED, failure=(Code.INTERNAL, _unexpected(problem)))

    def _save(self, job: SaveJob, fence: Fence | None) -> None:
        started = time.perf_counter()
        unwritten: list[_UnwrittenChunk] = []
        outcomes: list[ChunkOutcome] = []
        try:
            for part in job.chunks:
                unwritten.append(self._capture(job, part, fence, unwritten, outcomes))
            self._report(job.id, Phase.CAPTURED, done=len(outcomes))
            self._persist(job, unwritten, outcomes)
            for tier in job.tiers:
                self._stack.durable_tiers[tier].sync()
        finally:
            for each in unwritten:
                self._cpu.release(each.buffer)
        self._report(
            job.id,
            Phase.FINISHED,
            done=len(outcomes),
            outcomes=tuple(outcomes),
            seconds=time.perf_counter() - started,
        )

    def _capture(
        self,
        job: SaveJob,
        part: ChunkBlocks,
        fence: Fence | None,
        unwritten: list[_UnwrittenChunk],
        outcomes: list[ChunkOutcome],
    ) -> _UnwrittenChunk:
        """Copy one chunk out of the cache. If CPU memory is full, write the earlier ones first to free some."""
        size = self._shape.sealed_bytes(part.chunk)
        try:
            buffer = self._cpu.reserve(size)
        except CWMError as problem:
            if problem.code is not Code.MEMORY or not unwritten:
                raise
            self._persist(job, unwritten, outcomes)
            buffer = self._cpu.reserve(size)
        try:
            payload = buffer.tensor[HEADER_BYTES : HEADER_BYTES + self._shape.payload_bytes(part.chunk)]
            self._copier.gather(part.block_ids, payload, fence)
        except BaseException:
            self._cpu.release(buffer)
            raise
        return _UnwrittenChunk(part.chunk, buffer)

    def _persist(self, job: SaveJob, unwritten: list[_UnwrittenChunk], outcomes: list[ChunkOutcome]) -> None:
        """Seal and write every chunk of `unwritten`, publish it in CPU memory and empty the list."""
        targets = [self._stack.durable_tiers[tier] for tier in job.tiers]
        writes: list[tuple[_UnwrittenChunk, list[Future[None]]]] = []
        for each in unwritten:
            seal(each.buffer.view, self._shape.header(each.chunk))
            chunk_id = self._shape.id(each.chunk)
            writes.append((each, [tier.write(chunk_id, each.buffer.view, job.claim) for tier in targets]))
        unwritten.clear()
        outcome = {each: [write.exception() for write in copies] for each, copies in writes}
        failure = next((problem for problems in outcome.values() for problem in problems if problem is not None), None)
        if failure is not None:
            for each, problems in outcome.items():
                if not any(is_buffer_in_use(problem) for problem in problems):
                    self._cpu.release(each.buffer)
            raise failure
        for each in outcome:
            self._publish(each.chunk, each.buffer)
            outcomes.append(ChunkOutcome(each.chunk.key, TierName.CPU, each.buffer.nbytes))

    def _publish(self, chunk: ChunkSpec, buffer: HostBuffer) -> None:
        chunk_id = self._shape.id(chunk)
        self._cpu.publish(chunk_id, buffer)
        self._cpu.unpin(chunk_id)
        with self._lock:
            self._entered_cpu.append(chunk_id)

    def _load(self, job: LoadJob) -> None:
        """Fill a request's blocks. The end is always reported: the request waits for that, and for nothing else."""
        started = time.perf_counter()
        outcomes: list[ChunkOutcome] = []
        try:
            for part, verified in zip(
                job.chunks, self._chunk_reader.read(part.chunk for part in job.chunks), strict=True
            ):
                payload = verified.buffer.tensor[HEADER_BYTES : HEADER_BYTES + self._shape.payload_bytes(part.chunk)]
                self._copier.scatter(payload, part.chunk.blocks, part.first, part.block_ids)
                outcomes.append(self._loaded(verified.chunk, verified.tier))
        except CWMError as problem:
            outcomes.append(self._failed(job.chunks[len(outcomes)].chunk, (problem.code, problem.message)))
        except Exception as problem:
            logger.exception("a load failed")
            outcomes.append(self._failed(job.chunks[len(outcomes)].chunk, (Code.INTERNAL, _unexpected(problem))))
        good = sum(outcome.failure is None for outcome in outcomes)
        # vLLM trusts every block before the first bad one and none after it.
        bad = {block for part in job.chunks[good:] for block in part.block_ids}
        seconds = time.perf_counter() - started
        self._report(job.id, Phase.FINISHED, done=good, outcomes=tuple(outcomes), seconds=seconds)
        with self._lock:
            self._bad_blocks |= bad
            self._loaded_requests.add(job.request_id)

    def _promote(self, job: PromoteJob) -> None:
        started = time.perf_counter()
        outcomes, pinned = self._promote_prefix(job)
        for chunk_id in pinned:
            self._cpu.unpin(chunk_id)
        self._report(
            job.id,
            Phase.FINISHED,
            done=len(outcomes),
            outcomes=tuple(outcomes),
            seconds=time.perf_counter() - started,
        )

    def _promote_prefix(self, job: PromoteJob) -> tuple[list[ChunkOutcome], list[ChunkId]]:
        """Read as far as memory goes. Chunks stay pinned, so that the end of a window does not evict its beginning."""
        outcomes: list[ChunkOutcome] = []
        pinned: list[ChunkId] = []
        remaining = job.chunks
        while remaining:
            try:
                for verified in self._chunk_reader.read(remaining):
                    if self._cpu.pin(self._shape.id(verified.chunk), counts=False) is not None:
                        pinned.append(self._shape.id(verified.chunk))
                    outcomes.append(self._loaded(verified.chunk, verified.tier))
                    self._report(job.id, Phase.RUNNING, done=len(outcomes))
            except CWMError as problem:
                failed = job.chunks[len(outcomes)]
                if problem.code is Code.MEMORY:
                    outcomes += [self._unread(chunk) for chunk in job.chunks[len(outcomes) :]]
                else:
                    outcomes.append(self._failed(failed, (problem.code, problem.message)))
            remaining = job.chunks[len(outcomes) :]
        return outcomes, pinned

    def _loaded(self, chunk: ChunkSpec, tier: TierName) -> ChunkOutcome:
        if tier is not TierName.CPU:
            with self._lock:
                self._entered_cpu.append(self._shape.id(chunk))
        return ChunkOutcome(chunk.key, tier, self._shape.sealed_bytes(chunk))

    def _unread(self, chunk: ChunkSpec) -> ChunkOutcome:
        """Return the tier of a chunk that does not fit into memory. The chunk is verified when it is loaded."""
        size = self._shape.sealed_bytes(chunk)
        for tier in self._stack.durable_tiers.values():
            if tier.size_of(self._shape.id(chunk)) == size:
                return ChunkOutcome(chunk.key, tier.name, size)
        return self._failed(chunk, (Code.CHUNK_MISSING, "no tier has it whole; freeze its session again to replace it"))

    @staticmethod
    def _failed(chunk: ChunkSpec, failure: tuple[Code, str]) -> ChunkOutcome:
        return ChunkOutcome(chunk.key, None, 0, failure)

    def _drop(self, job: DropJob) -> None:
        outcomes, left_memory = self._maintenance.drop(job)
        with self._lock:
            self._left_cpu += left_memory
        self._report(job.id, Phase.FINISHED, done=len(job.chunks), outcomes=tuple(outcomes))

    def _maintain(self, job: CopyJob | VerifyJob) -> None:
        started = time.perf_counter()
        outcomes = self._maintenance.copy(job) if isinstance(job, CopyJob) else self._maintenance.verify(job)
        seconds = time.perf_counter() - started
        self._report(job.id, Phase.FINISHED, done=len(outcomes), outcomes=tuple(outcomes), seconds=seconds)


def _unexpected(problem: Exception) -> str:
    return f"unexpected {type(problem).__name__}; the engine's log has the details"

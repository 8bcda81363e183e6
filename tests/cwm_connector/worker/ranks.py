"""The worker side of one rank, with the real copies, the real memory pool and real files."""

import math
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import torch

from cwm_connector.core.identity import ChunkSpec, Geometry, Passport, chunk_specs
from cwm_connector.core.types import NO_CLAIM, ChunkKey, TierName
from cwm_connector.step.job_board import JobBoard, Ticket
from cwm_connector.step.jobs import ChunkBlocks, LoadJob, SaveJob, Work
from cwm_connector.tiers.cpu import CpuTier
from cwm_connector.tiers.disk.tier import DiskTier
from cwm_connector.worker.paged_copy import DirectCopier, copier_for
from cwm_connector.worker.worker import WorkerSide
from tests.support.host_queue import HostQueue

LAYERS, BLOCKS, BLOCK_TOKENS = 2, 24, 16
GEOMETRY = Geometry.of(BLOCK_TOKENS, 32)
CHUNK_BYTES = 4096 + 2 * LAYERS * 2 * BLOCK_TOKENS * 64 * 2


class Rank:
    """A worker side over caches of its own, and the scheduler side's board."""

    bad: list[tuple[ChunkKey, TierName]]
    """Copies that loads reported as bad."""

    def __init__(
        self,
        folder: Path,
        cpu_chunks: int = 64,
        device: str = "cpu",
        queues: tuple[HostQueue, HostQueue] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `queues`, copies go through them, out and in, as they would to a device."""
        self.bad = []
        torch.manual_seed(1)
        shape = (LAYERS, BLOCKS, 2, BLOCK_TOKENS, 64)
        bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, device=device)
        self.caches = list(bits.view(torch.bfloat16))
        self.folder = folder
        self.cpu = CpuTier(cpu_chunks * CHUNK_BYTES)
        copier = copier_for(self.caches) if queues is None else DirectCopier(self.caches, *queues)
        self.side = WorkerSide(0, 1, copier, BLOCK_TOKENS, self.cpu, [DiskTier(folder)])
        self.board = JobBoard(1, clock)

    def run(self, job: Work) -> Ticket:
        """Posts the job and plays vLLM's steps until it is done."""
        ticket = self.board.post(job)
        self.side.submit(self.board.take())
        self.finish(ticket)
        return ticket

    def finish(self, ticket: Ticket, seconds: float = math.inf) -> bool:
        """Plays vLLM's steps until the job is done, for so long. Returns whether it is."""
        pause, end = threading.Event(), time.monotonic() + seconds
        while not ticket.finished.done() and time.monotonic() < end:
            if (reports := self.side.take_reports()) is not None:
                self.board.deliver(reports.reports)
                self.bad += reports.bad_copies
            pause.wait(0.001)
        return ticket.finished.done()

    def save(self, specs: tuple[ChunkSpec, ...], first_block: int = 0) -> Ticket:
        return self.run(SaveJob(self.board.next_id(), parts(specs, first_block), (TierName.DISK,), NO_CLAIM))

    def load(self, specs: tuple[ChunkSpec, ...], first_block: int, request: str = "r") -> Ticket:
        return self.run(LoadJob(self.board.next_id(), request, parts(specs, first_block)))

    def file_of(self, spec: ChunkSpec) -> Path:
        return next(path for path in self.folder.iterdir() if spec.key.hex() in path.name)

    def pages(self, blocks: range) -> torch.Tensor:
        return torch.stack([cache[blocks.start : blocks.stop] for cache in self.caches]).view(torch.int16).clone()


def parts(specs: tuple[ChunkSpec, ...], first_block: int) -> tuple[ChunkBlocks, ...]:
    return tuple(
        ChunkBlocks(spec, tuple(range(first_block + spec.first_block, first_block + spec.end_block))) for spec in specs
    )


def specs(blocks: int, seed: int = 0) -> tuple[ChunkSpec, ...]:
    ids = array("i", range(seed, seed + blocks * BLOCK_TOKENS))
    return chunk_specs(Passport({"weights": "w"}), GEOMETRY, ids)

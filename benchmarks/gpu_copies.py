"""Rates of the bus, the checksums and the disk of this machine, and of a worker side without an engine around it."""

import mmap
import os
import statistics
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from awscrt.checksums import crc64nvme

from cwm_connector.core.identity import ChunkSpec, Geometry, Passport, chunk_specs
from cwm_connector.core.types import NO_CLAIM, TierName
from cwm_connector.core.units import GIB, MIB
from cwm_connector.step.job_board import JobBoard, Ticket
from cwm_connector.step.jobs import ChunkBlocks, LoadJob, PromoteJob, SaveJob, Work
from cwm_connector.tiers.cpu import CpuTier
from cwm_connector.tiers.disk.tier import DiskTier
from cwm_connector.worker.paged_copy import copier_for
from cwm_connector.worker.worker import WorkerSide

Row = dict[str, Any]

BLOCK_TOKENS: Final = 16
LAYERS, HEADS, HEAD_SIZE = 32, 8, 128
"""Llama-3.1-8B's shape: 131,072 bytes of KV per token."""
CHUNK_TOKENS: Final = 256
CAPTURES: Final = 4


def _rate(work: Callable[[], object], n_bytes: int, rounds: int = 5) -> float:
    rates = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        rates.append(n_bytes / (time.perf_counter() - began) / 1e9)
    return round(statistics.median(rates[1:]), 1)


def bus() -> Iterator[Row]:
    """Measure plain copies of 1 GiB between page-locked memory and the device."""
    host = torch.empty(GIB, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    yield {"ceiling": "plain copy to the device", "GBs": _rate(lambda: device.copy_(host, non_blocking=True), GIB)}
    yield {"ceiling": "plain copy from the device", "GBs": _rate(lambda: host.copy_(device, non_blocking=True), GIB)}


def checksums() -> Iterator[Row]:
    """Measure checksums of 32-MiB buffers in 1 to 8 threads."""
    buffers = [memoryview(bytearray(os.urandom(32 * MIB))) for _ in range(16)]
    for threads in (1, 4, 8):
        with ThreadPoolExecutor(threads) as pool:
            rate = _rate(partial(_checksum_all, pool, buffers), 16 * 32 * MIB)
        yield {"ceiling": f"checksum, {threads} threads", "GBs": rate}


def _checksum_all(pool: ThreadPoolExecutor, buffers: list[memoryview]) -> None:
    list(pool.map(crc64nvme, buffers))


def disk(folder: Path) -> Iterator[Row]:
    """Measure O_DIRECT writes by one thread and reads by 1 and 4 threads, in 32-MiB pieces."""
    size, step = 4 * GIB, 32 * MIB
    path = folder / "ceiling.bin"

    def buffer() -> mmap.mmap:
        return mmap.mmap(-1, step)

    data = buffer()
    data.write(os.urandom(step))
    began = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    for _ in range(size // step):
        os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)
    rate = round(size / (time.perf_counter() - began) / 1e9, 2)
    yield {"ceiling": "O_DIRECT write, 1 thread", "GBs": rate}

    def read(first: int, threads: int) -> None:
        into = buffer()
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        for piece in range(first, size // step, threads):
            os.preadv(descriptor, [into], piece * step)
        os.close(descriptor)

    for threads in (1, 4):
        began = time.perf_counter()
        readers = [threading.Thread(target=read, args=(first, threads)) for first in range(threads)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        rate = round(size / (time.perf_counter() - began) / 1e9, 2)
        yield {"ceiling": f"O_DIRECT read, {threads} threads", "GBs": rate}
    path.unlink()


class Worker:
    """A worker side over a cache on the device, without an engine."""

    def __init__(self, folder: Path, tokens: int) -> None:
        """`tokens`: the length of one sequence. The cache has room for two, the memory for three."""
        blocks = 2 * tokens // BLOCK_TOKENS
        shape = (LAYERS, blocks, 2 * HEADS, BLOCK_TOKENS, HEAD_SIZE)
        self._cache = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
        self._cache[:, : blocks // 2].normal_()
        copier = copier_for(list(self._cache))
        cpu = CpuTier(3 * tokens * copier.page_bytes * LAYERS // BLOCK_TOKENS)
        cpu.ready()
        self._side = WorkerSide(0, 1, copier, BLOCK_TOKENS, cpu, [DiskTier(folder)])
        self._board = JobBoard(1)
        self._ids = array("i", range(tokens))
        self._blocks = blocks
        self.bytes = tokens // BLOCK_TOKENS * copier.page_bytes * LAYERS

    def measure(self) -> Iterator[Row]:
        """Save a sequence, load it into other blocks from memory, and promote it. Compare every byte.

        The first save does not count: whatever is made at its first use is made then.
        """
        saves = []
        for number in range(CAPTURES):
            specs = self._specs(number)
            saves.append(self._run(SaveJob(self._board.next_id(), _parts(specs, 0), (TierName.DISK,), NO_CLAIM)))
        captured, finished = (statistics.median(times) for times in zip(*saves[1:], strict=True))
        first = {"first_GBs": self._rate(saves[0][0])}
        yield {"worker": "capture", "GBs": self._rate(captured), "durable_GBs": self._rate(finished), **first}
        half = self._blocks // 2
        seconds = []
        for _ in range(5):
            self._cache[:, half:].zero_()
            seconds.append(self._run(LoadJob(self._board.next_id(), "r", _parts(specs, half)))[1])
        exact = torch.equal(self._cache[:, :half].view(torch.int16), self._cache[:, half:].view(torch.int16))
        yield {"worker": "load from memory", "GBs": self._rate(statistics.median(seconds)), "exact": exact}
        promote = self._run(PromoteJob(self._board.next_id(), specs))[1]
        yield {"worker": "promote what is in memory", "ms": round(promote * 1000, 2), "chunks": len(specs)}

    def close(self) -> None:
        """End the threads and give the memory back."""
        self._side.close()

    def _specs(self, number: int) -> tuple[ChunkSpec, ...]:
        passport = Passport({"weights": f"random, {number}"})
        return chunk_specs(passport, Geometry.of(BLOCK_TOKENS, CHUNK_TOKENS), self._ids)

    def _run(self, job: Work) -> tuple[float, float]:
        """Carry out a job. Return the seconds until it was captured and until it was finished."""
        torch.cuda.synchronize()
        ticket: Ticket = self._board.post(job)
        times: dict[str, float] = {}
        began = time.perf_counter()
        for name, future in (("captured", ticket.captured), ("finished", ticket.finished)):
            future.add_done_callback(partial(lambda name, _: times.setdefault(name, time.perf_counter() - began), name))
        self._side.submit(self._board.take())
        while not ticket.finished.done():
            if (reports := self._side.take_reports()) is not None:
                self._board.deliver(reports.reports)
            time.sleep(0.0005)
        ticket.finished.result()
        self._side.take_loaded()
        if bad := self._side.take_bad_blocks():
            raise RuntimeError(f"{len(bad)} blocks could not be loaded")
        return times["captured"], times["finished"]

    def _rate(self, seconds: float) -> float:
        return round(self.bytes / seconds / 1e9, 1)


def _parts(specs: Sequence[ChunkSpec], first: int) -> tuple[ChunkBlocks, ...]:
    return tuple(ChunkBlocks(spec, tuple(range(first + spec.first_block, first + spec.end_block))) for spec in specs)


def worker() -> Iterator[Row]:
    """Measure a worker side with 32,768 tokens of Llama-3.1-8B's shape."""
    with tempfile.TemporaryDirectory() as folder:
        side = Worker(Path(folder), 32_768)
        try:
            yield from side.measure()
        finally:
            side.close()

"""Measure how fast the tiers move chunks: `python -m benchmarks.tiers [--rounds 9] [--folder DIR]`.

Sealed chunks of three sizes are moved, checksums included. For comparison, plain system calls move the same bytes:
files written and read with O_DIRECT from as many threads (each fsynced, as the tier does), and a copy in memory. The
calls take turns within every round, so that other work on the machine slows all of them. Figures are MiB/s of wall
time.
"""

import argparse
import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table

from cwm_connector.core.types import ChunkKey
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import HEADER_BYTES, ChunkHeader, check, seal
from cwm_connector.tiers.cpu import CpuTier
from cwm_connector.tiers.disk.tier import DiskTier

MIB: Final = 1 << 20
SIZES: Final = (3 * MIB // 2, 6 * MIB, 32 * MIB)
BATCH_BYTES: Final = 128 * MIB
"""How much one timed call moves."""
WORKERS: Final = 4


SHARES: Final = {
    "disk put / plain, of each round": ("disk put: tier, sealed and synced", "disk put: plain O_DIRECT + fsync"),
    "disk get / plain, of each round (target: 80 %)": ("disk get: tier, checked", "disk get: plain O_DIRECT"),
}
"""Which series is compared with which plain one."""


class Batch:
    """The same chunks for every candidate: sealed bytes to write, and memory of the same size to read into."""

    def __init__(self, sealed_size: int, n_bytes: int = BATCH_BYTES) -> None:
        content = random.Random(sealed_size)
        count = n_bytes // sealed_size
        self.n_bytes = count * sealed_size
        self.headers = [
            ChunkHeader(ChunkKey(content.randbytes(32)), 0, 256, 16, sealed_size - HEADER_BYTES, bytes(32))
            for _ in range(count)
        ]
        self.ids = [ChunkId(header.key, header.kv_rank) for header in self.headers]
        self.sources = [memoryview(mmap.mmap(-1, sealed_size)) for _ in range(count)]
        self.targets = [memoryview(mmap.mmap(-1, sealed_size)) for _ in range(count)]
        pattern = content.randbytes(MIB)
        for header, source, target in zip(self.headers, self.sources, self.targets, strict=True):
            source[:] = (pattern * (sealed_size // MIB + 1))[:sealed_size]
            seal(source, header)
            target[:] = source


# --- candidates: each moves the batch once --------------------------------------------------------------------------


def put(tier: DiskTier, batch: Batch) -> None:
    """Seal the chunks, write them to the disk tier and sync it."""
    writes: list[Future[None]] = []
    for chunk, header, source in zip(batch.ids, batch.headers, batch.sources, strict=True):
        seal(source, header)
        writes.append(tier.write(chunk, source))
    for write in writes:
        write.result()
    tier.sync()


def get(tier: DiskTier, batch: Batch) -> None:
    """Read the chunks from the disk tier and check them."""
    reads = [tier.read(chunk, target) for chunk, target in zip(batch.ids, batch.targets, strict=True)]
    for read, header, target in zip(reads, batch.headers, batch.targets, strict=True):
        read.result()
        check(target, header)


def plain_write(folder: Path, buffers: Sequence[memoryview], threads: ThreadPoolExecutor) -> None:
    """Write each buffer to a file with O_DIRECT and fsync it."""

    def write(number: int) -> None:
        descriptor = os.open(folder / str(number), os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
        try:
            if os.write(descriptor, buffers[number]) != buffers[number].nbytes:
                raise RuntimeError("a short write")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    list(threads.map(write, range(len(buffers))))


def plain_read(folder: Path, buffers: Sequence[memoryview], threads: ThreadPoolExecutor) -> None:
    """Read each file into its buffer with O_DIRECT."""

    def read(number: int) -> None:
        descriptor = os.open(folder / str(number), os.O_RDONLY | os.O_DIRECT)
        try:
            if os.readv(descriptor, [buffers[number]]) != buffers[number].nbytes:
                raise RuntimeError("a short read")
        finally:
            os.close(descriptor)

    list(threads.map(read, range(len(buffers))))


def put_in_memory(tier: CpuTier, batch: Batch) -> None:
    """Copy the chunks into the CPU tier and seal them."""
    for chunk, header, source in zip(batch.ids, batch.headers, batch.sources, strict=True):
        buffer = tier.reserve(source.nbytes)
        buffer.tensor.copy_(torch.frombuffer(source, dtype=torch.uint8))
        seal(buffer.view, header)
        tier.publish(chunk, buffer)
        tier.unpin(chunk)


def get_from_memory(tier: CpuTier, batch: Batch) -> None:
    """Pin the chunks in the CPU tier and check them."""
    for chunk, header in zip(batch.ids, batch.headers, strict=True):
        buffer = tier.pin(chunk)
        if buffer is None:
            raise RuntimeError("the chunk was evicted")
        check(buffer.view, header)
        tier.unpin(chunk)


def copy(batch: Batch) -> None:
    """Copy the chunks from memory to memory."""
    for source, target in zip(batch.sources, batch.targets, strict=True):
        torch.frombuffer(target, dtype=torch.uint8).copy_(torch.frombuffer(source, dtype=torch.uint8))


# --- measuring --------------------------------------------------------------------------------------------------------


def timed(n_bytes: int, call: Callable[[], None]) -> float:
    """Return the MiB/s of one call."""
    begun = time.perf_counter()
    call()
    return n_bytes / MIB / (time.perf_counter() - begun)


def one_round(
    batch: Batch, cpu: CpuTier, disk: DiskTier, plain: Path, threads: ThreadPoolExecutor
) -> Iterator[tuple[str, float]]:
    """Yield the MiB/s of every call, and remove the files and chunks afterwards."""
    yield "disk put: plain O_DIRECT + fsync", timed(batch.n_bytes, lambda: plain_write(plain, batch.sources, threads))
    yield "disk put: tier, sealed and synced", timed(batch.n_bytes, lambda: put(disk, batch))
    yield "disk get: plain O_DIRECT", timed(batch.n_bytes, lambda: plain_read(plain, batch.targets, threads))
    yield "disk get: tier, checked", timed(batch.n_bytes, lambda: get(disk, batch))
    yield "memory: plain copy", timed(batch.n_bytes, lambda: copy(batch))
    yield "memory put: tier, copied and sealed", timed(batch.n_bytes, lambda: put_in_memory(cpu, batch))
    yield "memory get: tier, checked", timed(batch.n_bytes, lambda: get_from_memory(cpu, batch))
    for chunk in batch.ids:
        cpu.drop(chunk)
        disk.delete(chunk)
    for file in plain.iterdir():
        file.unlink()


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each call is timed")
    parser.add_argument("--folder", type=Path, help="the folder for the files, which are removed afterwards")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the worker's transfer threads
    figures: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, ThreadPoolExecutor(WORKERS) as threads:
        chunks, plain = Path(folder) / "chunks", Path(folder) / "plain"
        chunks.mkdir()
        plain.mkdir()
        with closing(CpuTier(BATCH_BYTES + MIB)) as cpu, closing(DiskTier(chunks, workers=WORKERS)) as disk:
            for size in SIZES:
                batch = Batch(size)
                for number in range(options.rounds + 1):
                    for name, speed in one_round(batch, cpu, disk, plain, threads):
                        if number:  # the first one starts threads and clients
                            figures.setdefault(name, {}).setdefault(size, []).append(speed)
    load = Path("/proc/loadavg").read_text().split()[0]
    head = f"MiB/s, median (lowest–highest) of {options.rounds}, {os.cpu_count()} CPUs, load {load}, {WORKERS} threads"
    table = Table(title=head)
    table.add_column("")
    for size in SIZES:
        table.add_column(f"{size / MIB:g} MiB", justify="right")
    for name, speeds in figures.items():
        table.add_row(name, *(spread(each, "{:,.0f}") for each in speeds.values()))
    table.add_section()
    for what, (part, ceiling) in SHARES.items():
        rounds = [zip(figures[part][size], figures[ceiling][size], strict=True) for size in SIZES]
        table.add_row(what, *(spread([ours / theirs for ours, theirs in each], "{:.0%}") for each in rounds))
    Console().print(table)


def spread(values: Sequence[float], form: str) -> str:
    """Return median, lowest and highest as text."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()

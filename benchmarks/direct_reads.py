"""Reads files with plain O_DIRECT: the ceiling for loads from the disk tier."""

import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

WORKERS: Final = 4
"""As many as the disk tier has."""


def seconds_to_read(files: Sequence[Path]) -> float:
    """Return the seconds that reading all files into memory takes, with a few threads. The page cache has no part."""
    buffers = [mmap.mmap(-1, file.stat().st_size) for file in files]
    for buffer in buffers:
        buffer.write(bytes(len(buffer)))  # so that no page is allocated while it counts

    def read(number: int) -> None:
        descriptor = os.open(files[number], os.O_RDONLY | os.O_DIRECT)
        try:
            if os.readv(descriptor, [buffers[number]]) != len(buffers[number]):
                raise RuntimeError(f"{files[number]} was not read whole")
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(WORKERS) as threads:
        begun = time.perf_counter()
        list(threads.map(read, range(len(files))))
        return time.perf_counter() - begun

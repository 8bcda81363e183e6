"""The durable tier on a local disk: one file per sealed chunk, `cwm@0x<rank>@0@<key>.data`, in one folder.

A write goes into this process's staging folder, is fsynced there, and only then moved to the chunk's name. So a file
under a chunk's name is whole after a kill or a power cut, and writing a chunk again never loses the old copy.
LMCache's native client moves the bytes, past the page cache where the file system allows it. Otherwise a window that is
read once would push out pages that the machine needs.

Threads: any but the engine's own. Reads, writes and the folder's maintenance have threads of their own, so that a thaw
never queues behind a freeze. Each call is answered within the time-out even if the disk hangs.
"""

import errno
import functools
import itertools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.folders import free_bytes, free_space
from cwm_connector.core.fsync import sync as sync_path
from cwm_connector.core.types import NO_CLAIM, ChunkKey, Claim, TierName
from cwm_connector.tiers.base import ChunkId
from cwm_connector.tiers.chunk import ALIGNMENT
from cwm_connector.tiers.disk import staging
from cwm_connector.tiers.disk.native_file import NativeFile, NativeFileError, accepts_direct_io, file_name
from cwm_connector.tiers.disk.staging import Staging
from cwm_connector.tiers.timeout_threads import TimeoutThreads

logger = logging.getLogger(__name__)
T = TypeVar("T")

_NAME: Final = "cwm"
_CHUNK_FILE: Final = re.compile(r"cwm@0x([0-9a-f]{8})@0@([0-9a-f]{64})\.data")


class DiskTier:
    """A `DurableTier` in `folder`, which must be there and belong to this program alone.

    `workers` transfers run at once in each direction. `timeout_s` bounds each transfer from the moment its turn comes.
    It then fails with `Code.WRITE_FAILED` or `Code.READ_FAILED`, and `buffer_in_use` in the error's context says that
    the kernel may still read from or write to the buffer: it must not be reused or freed in this process. Buffers are
    of format "B", and their address and length are multiples of 4,096 bytes.
    """

    name = TierName.DISK
    shared = False

    def __init__(
        self, folder: Path, *, limit_bytes: int | None = None, workers: int = 4, timeout_s: float = 60.0
    ) -> None:
        if not folder.is_dir():
            raise CWMError(
                Code.BACKEND, f"the disk tier's folder {folder} is not there; create it or set CWM_DISK_PATH"
            )
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._staging = Staging(folder)
        self._numbers = itertools.count()
        self._direct: bool | None = None
        self._direct_lock = threading.Lock()
        self._client = threading.local()
        self._readers = TimeoutThreads("cwm-disk-read", workers, timeout_s)
        self._writers = TimeoutThreads("cwm-disk-write", workers, timeout_s)
        self._maintenance = TimeoutThreads("cwm-disk-maintenance", 1, timeout_s)

    # --- transfers ----------------------------------------------------------------------------------------------------

    def write(self, chunk: ChunkId, sealed: memoryview, claim: Claim = NO_CLAIM) -> "Future[None]":
        """Replace whatever is stored under the id, at once and whole.

        Fails with `Code.QUOTA` for a full disk, else with `Code.WRITE_FAILED`.
        """
        _check_buffer(sealed)
        timed_out = threading.Event()

        def overdue(started: bool) -> CWMError:
            timed_out.set()
            return self._no_answer(Code.WRITE_FAILED, started)

        return self._writers.submit(functools.partial(self._write, chunk, sealed, timed_out), overdue)

    def read(self, chunk: ChunkId, into: memoryview) -> "Future[None]":
        """Fill `into` with the chunk's bytes.

        Fails with `Code.CHUNK_MISSING`, `Code.READ_FAILED`, or `Code.CORRUPT` for another length. After the latter
        `into` is untouched.
        """
        _check_buffer(into)
        return self._readers.submit(
            functools.partial(self._read, chunk, into), functools.partial(self._no_answer, Code.READ_FAILED)
        )

    def _write(self, chunk: ChunkId, sealed: memoryview, timed_out: threading.Event) -> None:
        staged: Path | None = None
        try:
            folder = self._staging.folder()
            # A name of its own for every write: LMCache keeps a file that is there.
            key = _key(chunk, f"{staging.STAGED_PREFIX}{next(self._numbers)}")
            staged = folder / file_name(key)
            self._native(folder, staged, os.O_CREAT | os.O_WRONLY).write(key, sealed)
            if staged.stat().st_size != sealed.nbytes:
                raise NativeFileError(f"{staged.stat().st_size} of {sealed.nbytes} bytes were written")
            sync_path(staged)
            if timed_out.is_set():  # its caller knows it as failed, and may have deleted the chunk since
                staged.unlink()
            else:
                staged.replace(self._path(chunk))
        except (OSError, NativeFileError) as problem:
            if staged is not None:
                _discard(staged)
            raise self._write_error(problem) from None

    def _read(self, chunk: ChunkId, into: memoryview) -> None:
        path = self._path(chunk)
        try:
            self._check_length(path, into.nbytes)
            try:
                self._native(self._folder, path, os.O_RDONLY).read(_key(chunk), into)
            except NativeFileError:
                self._check_length(path, into.nbytes)  # it may have been deleted or replaced since
                raise
        except FileNotFoundError:
            raise CWMError(
                Code.CHUNK_MISSING, f"a chunk is not in {self._folder}; its tokens are computed again"
            ) from None
        except (OSError, NativeFileError) as problem:
            raise self._read_error(problem) from None

    def _check_length(self, path: Path, expected: int) -> None:
        found = path.stat().st_size
        if found != expected:
            raise CWMError(
                Code.CORRUPT,
                f"a stored chunk has {found} bytes instead of {expected}; its tokens are computed again; freeze "
                "the session again to replace it",
                fault="length",
            )

    def _native(self, folder: Path, probe: Path, flags: int) -> NativeFile:
        """Return this thread's client. A thread either reads from the tier's folder or writes to the staging folder."""
        client: NativeFile | None = getattr(self._client, "value", None)
        if client is None:
            client = self._client.value = NativeFile(folder, self._is_direct(probe, flags))
        return client

    def _is_direct(self, probe: Path, flags: int) -> bool:
        with self._direct_lock:
            if self._direct is None:
                self._direct = accepts_direct_io(probe, flags)
                if flags & os.O_CREAT:
                    probe.unlink(missing_ok=True)
                if not self._direct:
                    logger.warning("%s does not take direct I/O: chunks go through the page cache", self._folder)
            return self._direct

    # --- maintenance --------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make every finished write findable after a power cut. Raises: `Code.WRITE_FAILED`."""
        self._writing(lambda: sync_path(self._folder))

    def limit_bytes(self) -> int | None:
        """Return what the settings allow. The tiering enforces it, not this class."""
        return self._limit_bytes

    def condition(self) -> str:
        """Return how much of the disk is free. Raises: `Code.READ_FAILED`."""
        free = self._reading(lambda: free_bytes(self._folder))
        return free_space(self._folder, free)

    def require_lasting(self) -> None:
        """Return at once: a disk keeps its content. Whether it can be written shows when it is."""

    def claims_of(self, chunk: ChunkId) -> frozenset[Claim]:
        """Return `NO_CLAIM` for a chunk that is there: the folder is one engine's own. Raises: `Code.READ_FAILED`."""
        return frozenset() if self.size_of(chunk) is None else frozenset({NO_CLAIM})

    def delete(self, chunk: ChunkId, claim: Claim = NO_CLAIM) -> bool:
        """Delete the chunk. Return True if it was there. Raises: `Code.WRITE_FAILED`."""

        def unlink() -> bool:
            try:
                self._path(chunk).unlink()
            except FileNotFoundError:
                return False
            return True

        return self._writing(unlink)

    def size_of(self, chunk: ChunkId) -> int | None:
        """Return the length of the chunk's file in bytes, right or wrong; None if there is none.

        Raises: `Code.READ_FAILED`.
        """

        def look() -> int | None:
            try:
                return self._path(chunk).stat().st_size
            except FileNotFoundError:
                return None

        return self._reading(look)

    def inventory(self) -> Iterator[tuple[ChunkId, int]]:
        """Return every chunk file with its length in bytes, right or wrong. Raises: `Code.READ_FAILED`."""

        def scan() -> list[tuple[ChunkId, int]]:
            with os.scandir(self._folder) as entries:
                return [
                    (_chunk_of(match), entry.stat(follow_symlinks=False).st_size)
                    for entry in entries
                    if (match := _CHUNK_FILE.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)
                ]

        return iter(self._reading(scan))

    def sweep_leftovers(self) -> int:
        """Remove what writers that died left behind, and return how many files. Files of other names are not touched.

        Raises: `Code.WRITE_FAILED`.
        """
        return self._writing(self._sweep)

    def close(self) -> None:
        """Fail calls that have not begun, and wait for the others as long as their time-out allows."""
        for threads in (self._readers, self._writers, self._maintenance):
            threads.close()
        self._staging.close()

    def _sweep(self) -> int:
        removed = staging.sweep(self._folder)
        for file in self._folder.iterdir():
            if file.name.startswith(f"{_NAME}@") and not _CHUNK_FILE.fullmatch(file.name) and file.is_file():
                file.unlink()
                removed += 1
        return removed

    def _reading(self, work: Callable[[], T]) -> T:
        try:
            return self._maintenance.submit(work, functools.partial(self._no_answer, Code.READ_FAILED)).result()
        except OSError as problem:
            raise self._read_error(problem) from None

    def _writing(self, work: Callable[[], T]) -> T:
        try:
            return self._maintenance.submit(work, functools.partial(self._no_answer, Code.WRITE_FAILED)).result()
        except OSError as problem:
            raise self._write_error(problem) from None

    # --- names and errors ---------------------------------------------------------------------------------------------

    def _path(self, chunk: ChunkId) -> Path:
        return self._folder / file_name(_key(chunk))

    def _no_answer(self, code: Code, started: bool) -> CWMError:
        return CWMError(
            code, f"the disk under {self._folder} does not answer; check it, then try again", buffer_in_use=started
        )

    def _read_error(self, problem: OSError | NativeFileError) -> CWMError:
        return CWMError(
            Code.READ_FAILED,
            f"the disk tier could not read from {self._folder} ({_reason(problem)}); check the disk and the folder's "
            "permissions, then try again",
        )

    def _write_error(self, problem: OSError | NativeFileError) -> CWMError:
        if any(os.strerror(number) in _reason(problem) for number in (errno.ENOSPC, errno.EDQUOT)):
            return CWMError(
                Code.QUOTA, f"the disk under {self._folder} is full; free some space or delete windows, then try again"
            )
        return CWMError(
            Code.WRITE_FAILED,
            f"the disk tier could not write to {self._folder} ({_reason(problem)}); check the disk and the folder's "
            "permissions, then try again",
        )


def _key(chunk: ChunkId, name: str = _NAME) -> str:
    return f"{name}@{chunk.kv_rank:08x}@0@{chunk.key.hex()}"


def _chunk_of(match: re.Match[str]) -> ChunkId:
    return ChunkId(ChunkKey(bytes.fromhex(match[2])), int(match[1], 16))


def _check_buffer(buffer: memoryview) -> None:
    if buffer.itemsize != 1 or not buffer.contiguous or buffer.nbytes == 0 or buffer.nbytes % ALIGNMENT:
        raise ValueError(f"{buffer!r} of {buffer.nbytes} bytes is not the buffer of a sealed chunk")


def _discard(staged: Path) -> None:
    """Remove what a failed write left, under the name that LMCache writes to and under the final one."""
    for path in (staged, staged.with_suffix(".tmp")):
        try:
            path.unlink(missing_ok=True)
        except OSError:
            logger.warning("%s could not be removed; the next start removes it", path)


def _reason(problem: OSError | NativeFileError) -> str:
    """Return the system's own words, which LMCache passes on."""
    return (problem.strerror or str(problem)) if isinstance(problem, OSError) else str(problem)

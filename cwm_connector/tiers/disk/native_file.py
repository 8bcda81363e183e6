"""One transfer at a time between memory and a file, by LMCache's native client (outside the GIL, O_DIRECT).

The client is asynchronous and built for batches. With one worker, and waited for, it gives what a tier needs: one
outcome for one chunk. It checks nothing that it moves, and reports a failure in words only.

Transfer threads; every transfer blocks until it is over.
"""

import errno
import os
import select
from pathlib import Path
from typing import Any

from cwm_connector.tiers.chunk import ALIGNMENT
from cwm_connector.tiers.lmcache_parts import LMCacheFSClient


class NativeFileError(Exception):
    """LMCache's own words."""


def file_name(key: str) -> str:
    """Return the name of LMCache's file for `name@rank@group@hash`, where rank is eight hexadecimal digits."""
    name, rank, group, chunk_hash = key.split("@")
    return f"{name}@0x{rank}@{group}@{chunk_hash}.data"


def accepts_direct_io(path: Path, flags: int) -> bool:
    """Return True if the file, opened (or, with O_CREAT, created) with `flags`, can bypass the page cache.

    Our alignment must do. Raises OSError if the file can't be opened at all.
    """
    if os.statvfs(path.parent).f_bsize > ALIGNMENT:  # LMCache then asks for addresses aligned to that
        return False
    try:
        os.close(os.open(path, flags | os.O_DIRECT, 0o600))
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
        return False
    return True


class NativeFile:
    """A client for the files of one folder, for one thread."""

    def __init__(self, folder: Path, direct: bool) -> None:
        try:
            self._client: Any = LMCacheFSClient(str(folder), 1, "", direct, 0)
        except RuntimeError as problem:
            raise NativeFileError(str(problem)) from None
        self._completed = select.poll()
        self._completed.register(self._client.event_fd(), select.POLLIN)

    def write(self, key: str, source: memoryview) -> None:
        """Create the key's file, which must not be there: LMCache would keep the old one and report success."""
        self._finish(self._client.submit_batch_set([key], [source]))

    def read(self, key: str, target: memoryview) -> None:
        """Fill `target` from the beginning of the key's file; a longer file is no error here."""
        (found,) = self._finish(self._client.submit_batch_get([key], [target]))
        if not found:
            raise NativeFileError("LMCache wrote the reason to the standard error stream")

    def _finish(self, submitted: int) -> list[bool]:
        while True:
            self._completed.poll()
            for number, ok, reason, results in self._client.drain_completions():
                if number == submitted:
                    if not ok:
                        raise NativeFileError(reason)
                    return results or []

"""One transfer at a time between memory and a file, by LMCache's native client (outside the GIL, O_DIRECT).

The client is asynchronous and built for batches; a client with one worker, waited for, gives what a store needs: one
chunk, one outcome. It checks nothing that it moves, and says what went wrong in words only.
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
    """The file that LMCache keeps `name@rank@group@hash` in, rank being eight hexadecimal digits."""
    name, rank, group, chunk_hash = key.split("@")
    return f"{name}@0x{rank}@{group}@{chunk_hash}.data"


def accepts_direct_io(path: Path, flags: int) -> bool:
    """Whether the file, opened (with O_CREAT: made) with `flags`, can bypass the page cache with our alignment.

    Raises OSError if it can't be opened at all.
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
        """Makes the key's file, which must not be there: LMCache would keep the old one and report success."""
        self._finish(self._client.submit_batch_set([key], [source]))

    def read(self, key: str, target: memoryview) -> None:
        """Fills `target` from the beginning of the key's file; a longer file is no error here."""
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

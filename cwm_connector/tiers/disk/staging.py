"""Where a process writes its chunks before they get their names: `<folder>/.tmp-<32 hex digits>`, its own.

A chunk is moved out of it whole and already on the device, so a file under a chunk's name is never half-written. A
process that dies leaves its folder behind, but its lock on the folder goes with it. So the next process can tell a dead
writer's folder from one in use: several ranks share a tier.

Transfer threads; may block on the disk.
"""

import fcntl
import os
import re
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

_FOLDER: Final = re.compile(r"\.tmp-[0-9a-f]{32}")
STAGED_PREFIX: Final = "cwm-"
"""Begins the name of every file in a staging folder."""


class Staging:
    """This process's staging folder, created when it is first asked for."""

    def __init__(self, tier_folder: Path) -> None:
        self._path = tier_folder / f".tmp-{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._lock_fd: int | None = None
        """The descriptor that holds the folder's lock."""

    def folder(self) -> Path:
        """Return its path. The folder is created again if it is gone. Raises OSError."""
        with self._lock:
            if not self._path.is_dir():
                self._unlock()
                self._path.mkdir(mode=0o700)
                self._lock_fd = _lock_folder(self._path)
            return self._path

    def close(self) -> None:
        """Remove the folder if it is empty. A later `sweep` removes what a stuck write left."""
        with self._lock:
            with suppress(OSError):
                self._path.rmdir()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def sweep(tier_folder: Path) -> int:
    """Remove dead writers' staging folders with the files in them, and return how many files. Raises OSError."""
    removed = 0
    for folder in tier_folder.iterdir():
        if not _FOLDER.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        lock_fd = _lock_folder(folder)
        if lock_fd is None:
            continue
        for file in folder.iterdir():
            if file.name.startswith(STAGED_PREFIX):
                file.unlink(missing_ok=True)
                removed += 1
        with suppress(OSError):  # a file in it is not ours
            folder.rmdir()
        os.close(lock_fd)
    return removed


def _lock_folder(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock until it is closed.

    None if a living process holds the lock, or the file system has no locks. Then nobody can tell, and nothing is
    removed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor

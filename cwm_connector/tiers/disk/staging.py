"""Where a process writes its chunks before they get their names: `<folder>/.tmp-<32 hex digits>`, its own.

A chunk is moved out of it whole and already on the device, so a file under a chunk's name never is a half-written one.
A process that dies leaves its folder behind; the lock it held on it goes with it, which is how the next one tells a
dead writer's folder from one in use (several ranks share a store).
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
    """This process's staging folder, made when it is first asked for."""

    def __init__(self, store: Path) -> None:
        self._path = store / f".tmp-{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._held: int | None = None
        """The descriptor that holds the lock."""

    def folder(self) -> Path:
        """Its path; made anew if it is gone. Raises OSError."""
        with self._lock:
            if not self._path.is_dir():
                self._let_go()
                self._path.mkdir(mode=0o700)
                self._held = _lock_folder(self._path)
            return self._path

    def close(self) -> None:
        """Removes the folder if it is empty; what a stuck write left is for a later `sweep`."""
        with self._lock:
            with suppress(OSError):
                self._path.rmdir()
            self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def sweep(store: Path) -> int:
    """Removes dead writers' staging folders with the files in them; returns how many files. Raises OSError."""
    removed = 0
    for folder in store.iterdir():
        if not _FOLDER.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        held = _lock_folder(folder)
        if held is None:
            continue
        for file in folder.iterdir():
            if file.name.startswith(STAGED_PREFIX):
                file.unlink(missing_ok=True)
                removed += 1
        with suppress(OSError):  # a file in it is not ours
            folder.rmdir()
        os.close(held)
    return removed


def _lock_folder(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed.

    None if a living process holds it, or the file system has no locks: then nobody can tell, and nothing is swept.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor

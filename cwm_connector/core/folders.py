"""Folders of the store: make one that only its user can read, and look at the state of one that is there.

Any process, any thread. May block on the disk.
"""

import errno
import os
from pathlib import Path
from typing import Final

import msgspec

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.fsync import sync_way_to
from cwm_connector.core.units import GIB, MIB

_NEARLY_FULL: Final = 256 * MIB
"""Bytes. A chunk of a large model has a tenth of it."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class FolderState(msgspec.Struct, frozen=True):
    """A folder as it is now. `fault` says what is wrong and what to do about it; None if the folder can be used."""

    free_bytes: int
    fault: str | None = None


def private_folder(path: Path, setting: str) -> Path:
    """Make `path` and return it once it can be written and outlives a power cut. A new folder gets mode 0700.

    Raises: `Code.ARGUMENT` naming `setting`.
    """
    probe = path / f".probe-{id(path)}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_way_to(path)
        probe.touch()
        probe.unlink()
    except OSError as problem:
        todo = "free some space or choose another folder" if problem.errno in _FULL else "choose another folder"
        raise CWMError(
            Code.ARGUMENT, f"{setting} names {path}, which can't be written ({problem.strerror}); {todo}"
        ) from None
    return path


def folder_state(folder: Path) -> FolderState:
    """Return the state of a folder. Nothing is written to it."""
    try:
        free = free_bytes(folder)
        read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError as problem:
        return FolderState(0, f"{folder} can't be read ({problem.strerror}); restore it")
    if read_only or not os.access(folder, os.R_OK) or not is_writable(folder):
        return FolderState(free, f"{folder} can't be written; correct its mount or permissions")
    if not free:
        return FolderState(free, f"the disk under {folder} is full; free some space")
    return FolderState(free)


def is_writable(folder: Path) -> bool:
    """Return True if this user can make files in the folder."""
    return os.access(folder, os.W_OK | os.X_OK)


def free_bytes(folder: Path) -> int:
    """Return the space that this user can fill on the folder's disk. Raises: OSError."""
    import shutil  # It imports three libraries of compression, and a list of windows needs none of them.

    return shutil.disk_usage(folder).free


def is_nearly_full(free: int) -> bool:
    """Return True if so little space is free that the next freeze may fail."""
    return free < _NEARLY_FULL


def free_space(folder: Path, free: int) -> str:
    """Return the sentence in which every part of the system reports the free space of a folder."""
    amount = f"{free / GIB:.1f} GiB" if free >= GIB // 10 else f"{free // MIB} MiB"
    return f"{amount} free in {folder}"

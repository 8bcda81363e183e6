"""Make files and the folders that lead to them survive a power cut.

The fsync of a file covers its content but not its name, so the folder needs an fsync of its own. Processes call this
module when they start, from any thread. It may block on the disk.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's content, or the entries of a folder, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_way_to(folder: Path) -> None:
    """Make the names of the folder and of all its parents durable, up to the root of the file system.

    The walk stops below a parent that this user may not read. Such a folder was not created just now, so its name is
    durable already. Raises OSError.
    """
    for here, parent in zip((folder, *folder.parents), folder.parents, strict=False):
        if os.path.ismount(here):
            return
        try:
            sync(parent)
        except PermissionError:
            return
